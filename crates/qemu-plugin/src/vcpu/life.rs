//! Beginning and end of a recording.

use super::{Guest, Kind, Ordering, REPORT, Record, Vcpu};

impl Vcpu {
    #[cold]
    pub(super) fn mark(&mut self, guest: &Guest, number: u8) {
        let first = if guest.options.interest { 3 } else { 1 };
        match number {
            _ if number == first && !guest.options.boot && !self.on => {
                guest.recording.store(true, Ordering::Release);
                self.look_around(guest);
            }
            _ if number == 2 || number == 4 && guest.options.interest => {
                guest.recording.store(false, Ordering::Release);
                if self.on {
                    self.stop();
                }
            }
            _ => {}
        }
        if self.on {
            self.event(guest, |v, _, _| {
                v.producer.push(Record::control(Kind::Mark, u64::from(number), 0));
            });
        }
    }

    /// Looks whether to begin or to end, and now and then tells how far this vCPU is.
    #[inline(never)]
    pub(super) fn look_around(&mut self, guest: &Guest) {
        let recording = guest.recording.load(Ordering::Acquire);
        if recording != self.on {
            if recording {
                self.start(guest);
            } else {
                self.stop();
            }
        }
        let made = guest.tables_made.load(Ordering::Acquire);
        if made != self.tables_made {
            // Another vCPU's store may have made a page that this one stores to a table.
            self.tables_made = made;
            self.data.clear(&mut self.producer);
        }
        self.until_report -= 1;
        if self.until_report == 0 {
            self.until_report = REPORT;
            if self.on {
                self.report(guest);
            }
        }
    }

    pub(super) fn report(&mut self, guest: &Guest) {
        let moment = guest.rings.moment();
        self.publish();
        self.producer.reached(moment);
        if moment != self.moment {
            self.moment = moment;
            self.producer.push(Record::control(Kind::Moment, moment, 0));
        }
    }

    pub(super) fn start(&mut self, guest: &Guest) {
        self.on = true;
        self.cr0 = self.registers.cr0();
        self.cr4 = self.registers.cr4();
        let (_, levels) = self.tables();
        self.levels = levels;
        if !guest.started.swap(true, Ordering::AcqRel) {
            self.memory_in_use(guest);
        }
        let cr3 = self.registers.cr3();
        self.load_cr3(guest, cr3);
        self.instructions = 0;
    }

    /// Says which memory the guest has used so far: what the sparse file behind it holds.
    pub(super) fn memory_in_use(&mut self, guest: &Guest) {
        let Ok(file) = std::fs::File::open(&guest.options.ram) else { return };
        for range in crate::entry::data_ranges(&file) {
            for (gpa, bytes) in guest.ram.pieces(range) {
                self.producer.push(Record::control(Kind::Backed, gpa, bytes));
            }
        }
    }

    /// Says everything that is left.
    pub fn stop(&mut self) {
        if !self.on {
            return;
        }
        self.on = false;
        // Instructions after the last run are counted in it.
        let rest = std::mem::take(&mut self.instructions);
        if self.producer.is_open(self.last_run) {
            let last = &mut self.producer.record(self.last_run).instructions;
            *last = last.saturating_add(u16::try_from(rest).unwrap_or(u16::MAX));
        }
        self.publish();
        for (reason, count) in self.dropped.into_iter().enumerate().filter(|d| d.1 > 0) {
            self.producer.push(Record::control(Kind::Dropped, reason as u64, count));
        }
        self.producer.push(Record::control(
            Kind::End,
            u64::from(self.index),
            self.producer.waits(),
        ));
        self.producer.publish();
        self.producer.reached(nestwalk_wire::IDLE);
    }

    /// The vCPU halts.
    pub fn idle(&mut self) {
        if self.on {
            self.publish();
        }
        self.producer.reached(nestwalk_wire::IDLE);
    }

    /// The vCPU runs again.
    pub fn resume(&mut self, guest: &Guest) {
        self.producer.reached(guest.rings.moment());
    }
}
