use super::*;
use nestwalk_sim::compare::Progress;

const GIB: u64 = 1 << 30;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn populating(done: u64, total: Option<u64>) -> Phase {
    Phase::of("populating memory", Amount::Bytes { done, total })
}

fn running(done: u64, of: Option<(u64, u64)>) -> Phase {
    Phase::of("running", Amount::Accesses { done, of })
}

#[test]
fn time_left_is_told_only_where_the_length_is_known() {
    let began = populating(0, Some(8 * GIB)).amount;
    let told = populating(2 * GIB, Some(8 * GIB)).text(began, seconds(10));
    assert_eq!(told, "populating memory: 2 GiB of 8 GiB, 30 s left");
    let told = populating(2 * GIB, None).text(populating(0, None).amount, seconds(10));
    assert_eq!(told, "populating memory: 2 GiB, 10 s so far");
    let began = running(0, None).amount;
    let told = running(50_000_000, None).text(began, seconds(10));
    assert_eq!(told, "running: 50,000,000 accesses at 5.0 M/s, 10 s so far");
    let told = running(50_000_000, Some((1, 4))).text(running(0, Some((0, 4))).amount, seconds(10));
    assert_eq!(told, "running: 50,000,000 accesses at 5.0 M/s, 25%, 30 s left");
    assert_eq!(Phase::new("booting").text(Amount::Time, seconds(200)), "booting, 3 min so far");
}

#[test]
fn nothing_is_guessed_from_nothing() {
    // No progress yet, too early, and at the end.
    let total = Some(8 * GIB);
    let began = populating(0, total).amount;
    for (done, elapsed) in [(0, 10), (GIB, 0), (8 * GIB, 10), (9 * GIB, 10)] {
        let told = populating(done, total).text(began, seconds(elapsed));
        assert!(!told.contains("left"), "{told}");
    }
    assert_eq!(populating(0, total).text(began, seconds(0)), "populating memory: 8 GiB");
    assert_eq!(running(4096, Some((4096, 10))).text(began, seconds(0)), "running");
    // Only what was done in this phase says how fast it is.
    let began = running(1000, Some((1000, 2000))).amount;
    assert_eq!(running(1000, Some((1000, 2000))).left(began, seconds(5)), None);
    let left = running(1500, Some((1500, 2000))).left(began, seconds(5));
    assert_eq!(left, Some(seconds(5)));
    // A source whose position goes back, as damage may make it.
    assert_eq!(running(1500, Some((10, 2000))).left(began, seconds(5)), None);
}

#[test]
fn times_are_told_as_people_say_them() {
    let told = [0, 119, 120, 7199, 7200, 10_000].map(|s| time(seconds(s)));
    assert_eq!(told, ["0 s", "119 s", "2 min", "119 min", "2 h 0 min", "2 h 46 min"]);
}

/// The names of the phases that a course goes through.
fn phases(course: Course, all: &[Progress]) -> Vec<String> {
    let mut names: Vec<String> = all.iter().map(|p| course.phase(p).what.into_owned()).collect();
    names.dedup();
    names
}

fn course(beginning: Beginning) -> Course {
    Course { beginning, ..Course::reading("running", None) }
}

#[test]
fn phases_follow_from_what_has_come() {
    let nothing = Progress::default();
    let begun = Progress { begun: true, ..nothing };
    let set_up = Progress { accesses: 2, ..begun };
    let warm = Progress { accesses: 9, ..set_up };
    let counted = Progress { accesses: 20, before: Some(9), ..warm };
    let all = [nothing, begun, set_up, warm, counted];
    // Three pages, touched by as many accesses.
    let plain = Course { populates: 3 * 4096, warmup: 6, ..course(Beginning::Plain) };
    assert_eq!(phases(plain, &all), ["populating memory", "warming up", "running"]);
    assert_eq!(plain.phase(&set_up).share(), Some((2 * 4096, 3 * 4096)));
    assert_eq!(plain.phase(&warm).share(), Some((6, 6)));
    let plain = Course { warmup: 0, ..plain };
    let expected = ["populating memory", "running up to what is looked at", "running"];
    assert_eq!(phases(plain, &all), expected);
    let touched = Progress { accesses: 3, ..set_up };
    assert_eq!(plain.phase(&touched).share(), Some((3 * 4096, 3 * 4096)));
    // Or by the guest's own doing.
    let populated = Progress { populated: 4096, ..begun };
    assert_eq!(plain.phase(&populated).share(), Some((4096, 3 * 4096)));
    let tables = "building the tables of the guest as it was before";
    assert_eq!(phases(course(Beginning::Tables), &[nothing, counted]), [tables, "running"]);
    let boot = "booting the guest, until its command begins";
    assert_eq!(
        phases(course(Beginning::Boot), &[nothing, begun, counted]),
        [boot, tables, "running"]
    );
    assert_eq!(phases(course(Beginning::Plain), &[nothing, counted]), ["running"]);
}

#[test]
fn a_run_ends_by_its_source_or_by_its_limit() {
    let at =
        |accesses, position| Progress { before: Some(100), ..Progress::read(accesses, position) };
    let of = |limit, total, progress: &Progress| {
        let course = Course { limit, total, ..course(Beginning::Plain) };
        course.phase(progress).share()
    };
    // 300 accesses were counted of 1,000; the source is at byte 50 of 10,000, or of 60.
    assert_eq!(of(1000, Some(10_000), &at(400, 50)), Some((300, 1000)));
    assert_eq!(of(1000, Some(60), &at(400, 50)), Some((50, 60)));
    assert_eq!(of(0, Some(60), &at(400, 50)), Some((50, 60)));
    assert_eq!(of(1000, None, &at(400, 50)), Some((300, 1000)));
    assert_eq!(of(0, None, &at(400, 50)), None);
    assert_eq!(of(0, Some(0), &at(400, 50)), None);
}

/// What was written, by a writer that is given away.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        lock(&self.0).write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Page {
    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(lock(&self.0).clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

fn on(page: &Page, every: Duration) -> Phases {
    Phases::on(Arc::new(Lines { out: Mutex::new(page.clone()), every }))
}

#[test]
fn without_a_terminal_each_phase_is_a_line() {
    let page = Page::default();
    let phases = on(&page, seconds(3600));
    phases.step(Step::Begins("downloading packages"), &mut |_| {});
    let at = nestwalk_capture::At { item: "gcc", number: 1, items: 2, bytes: 5, total: Some(9) };
    phases.step(Step::At(at), &mut |_| {});
    phases.begin(populating(0, Some(GIB)));
    phases.at(Amount::Bytes { done: 5, total: Some(GIB) });
    phases.begin(running(0, None));
    drop(phases);
    let told = ["downloading packages", "populating memory: 1 GiB", "running"];
    assert_eq!(page.lines(), told.map(|line| format!("nestwalk: {line}")));
}

#[test]
fn a_long_phase_is_told_again() {
    let page = Page::default();
    let phases = on(&page, Duration::from_millis(5));
    phases.step(Step::Begins("downloading packages"), &mut |_| {});
    let at = nestwalk_capture::At { item: "gcc", number: 1, items: 2, bytes: 5, total: Some(9) };
    phases.step(Step::At(at), &mut |_| {});
    let begin = Instant::now();
    let again = "nestwalk: downloading packages: gcc, 1 of 2: 5 B of 9 B";
    while !page.lines().iter().any(|line| line == again) {
        assert!(begin.elapsed() < seconds(60), "{:?}", page.lines());
        std::thread::sleep(Duration::from_millis(5));
    }
    // Between two phases there is nothing to tell.
    phases.end();
    let before = page.lines().len();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(page.lines().len(), before);
}

#[test]
fn what_is_found_is_told_by_whoever_asked_however_quiet() {
    for phases in [Phases::new(true), on(&Page::default(), seconds(3600))] {
        let mut found = Vec::new();
        phases.step(Step::Found("kernel"), &mut |text| found.push(text.to_owned()));
        phases.step(Step::Begins("x"), &mut |text| found.push(text.to_owned()));
        assert_eq!(found, ["kernel"]);
    }
}
