//! A learned index (after LVM, "Learned virtual memory", MICRO 2025, and what Margaritov proposes): lines
//! with the entries of eight pages on end stand in arrays with gaps, and linear models say where. A
//! model covers the lines from its first one to the next model's; it predicts a place, and the line is
//! no further from that than the bound on its error. Hardware reads the model, unless it holds it, then
//! the place predicted, and its neighbours, the nearest first, until the tag fits.
//!
//! - *Training.* The OS fits models to the lines there are by one pass, each as long as a line through
//!   their ranks can be drawn within the bound (a shrinking cone), with a quarter of the places left
//!   free. A line that finds no free place within the bound has its model trained again, which moves
//!   all of its lines.
//! - *Sizes of pages* have models of their own, and are tried as in `hashed`: first the size that was
//!   found last in that 2 MiB.
//! - *Chosen*: the bound, models of 16 bytes, four to a line, two levels of them from 65 models on.

use super::{Found, Key, NoMemory, Structure, StructureState, Supply, Work};
use nestwalk_tables::Entry;

#[cfg(test)]
mod tests;

const CLUSTER: u64 = 8;
const LINE: u64 = 64;
const PAGE: u64 = 4096;
const PREDICTOR: usize = 512;
/// Slopes are in places per line over 2^20.
const ONE: u64 = 1 << 20;
/// Models in a line.
const MODELS: usize = 4;

/// How it is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LearnedConfig {
    /// How far a line may stand from where it is predicted, in places.
    pub error: u64,
    /// Lines of models that a core holds. The paper's cache is small; chosen.
    pub held: usize,
}

impl Default for LearnedConfig {
    fn default() -> Self {
        Self { error: 3, held: 16 }
    }
}

#[derive(Clone, Copy, Default)]
struct Line {
    cluster: u64,
    present: u32,
    entries: [u64; CLUSTER as usize],
}

/// A model and its lines.
struct Model {
    first: u64,
    slope: u64,
    base: u64,
    used: u64,
    lines: Vec<Line>,
}

impl Model {
    #[inline]
    fn predict(&self, cluster: u64) -> u64 {
        (u128::from(cluster - self.first) * u128::from(self.slope) / u128::from(ONE)) as u64
    }
    /// Places no further than the bound from a prediction, the nearest first.
    #[inline]
    fn near(&self, cluster: u64, error: u64) -> impl Iterator<Item = usize> {
        let (at, len) = (self.predict(cluster), self.lines.len() as u64);
        (0..=2 * error).filter_map(move |i| {
            let step = i.div_ceil(2);
            let place = if i % 2 == 1 { Some(at + step) } else { at.checked_sub(step) };
            place.filter(|p| *p < len).map(|p| p as usize)
        })
    }
    fn bytes(&self) -> u64 {
        self.lines.len() as u64 * LINE
    }
}

/// Models of one size of pages of a region, by their first line.
#[derive(Default)]
struct Models {
    shift: u8,
    /// Where the models themselves are.
    at: u64,
    bytes: u64,
    models: Vec<Model>,
}

impl Models {
    #[inline]
    fn model(&self, cluster: u64) -> Option<usize> {
        self.models.partition_point(|m| m.first <= cluster).checked_sub(1)
    }
    /// Where a line is: model and place.
    fn find(&self, cluster: u64, error: u64) -> Option<(usize, usize)> {
        let model = self.model(cluster)?;
        let m = &self.models[model];
        let there = |at: &usize| m.lines[*at].present != 0 && m.lines[*at].cluster == cluster;
        Some((model, m.near(cluster, error).find(there)?))
    }
}

/// The index.
pub struct Learned {
    config: LearnedConfig,
    regions: Vec<Vec<Models>>,
    sizes: Vec<(u8, u64)>,
    predictors: Vec<[u8; PREDICTOR]>,
    held: Vec<Vec<u64>>,
    bytes: u64,
    work: Work,
}

impl Learned {
    /// Nothing learned, for so many cores.
    pub fn new(config: LearnedConfig, cores: usize) -> Self {
        Self {
            config,
            regions: Vec::new(),
            sizes: Vec::new(),
            predictors: vec![[12; PREDICTOR]; cores],
            held: vec![Vec::new(); cores],
            bytes: 0,
            work: Work::default(),
        }
    }

    fn models(&self, key: Key, shift: u8) -> Option<&Models> {
        self.regions.get(key.region as usize)?.iter().find(|m| m.shift == shift)
    }

    fn take(&mut self, bytes: u64, memory: &mut dyn Supply) -> Result<u64, NoMemory> {
        let Some(at) = memory.take(bytes) else {
            self.work.refused += 1;
            return Err(NoMemory);
        };
        self.work.pages += bytes / PAGE;
        self.bytes += bytes;
        Ok(at)
    }

    fn give(&mut self, at: u64, bytes: u64, memory: &mut dyn Supply) {
        memory.give(at, bytes);
        self.bytes -= bytes;
    }

    /// How many of these lines, in order, a model fits, and its slope: a cone of slopes that keeps every
    /// rank within the bound, less one place for what is in the way.
    fn cone(&self, lines: &[Line]) -> (usize, u64) {
        let (first, slack) = (lines[0].cluster, self.config.error.saturating_sub(1).max(1));
        let (mut low, mut high) = (0, 2 * ONE);
        for (rank, line) in lines.iter().enumerate().skip(1) {
            let (far, place) = (line.cluster - first, rank as u64 * 5 / 4);
            let least = (place.saturating_sub(slack) * ONE).div_ceil(far);
            let most = (place + slack) * ONE / far;
            if least.max(low) > most.min(high) {
                return (rank, u64::midpoint(low, high));
            }
            (low, high) = (least.max(low), most.min(high));
        }
        (lines.len(), u64::midpoint(low, high.min(low + 2 * ONE)))
    }

    /// A model of lines, in order, and the first of them in their places, up to one that has none.
    fn laid_out(&self, lines: &[Line], slope: u64) -> Model {
        let (first, error) = (lines[0].cluster, self.config.error);
        let mut model = Model { first, slope, base: 0, used: 0, lines: Vec::new() };
        let last = model.predict(lines[lines.len() - 1].cluster);
        // Room for what comes behind the last line.
        let places = last + 1 + error + last / 4;
        let bytes = (places * LINE).next_power_of_two().max(PAGE);
        model.lines = vec![Line::default(); (bytes / LINE) as usize];
        for line in lines {
            let free = |at: &usize| model.lines[*at].present == 0;
            let Some(at) = model.near(line.cluster, error).find(free) else { break };
            model.lines[at] = *line;
            model.used += 1;
        }
        model
    }

    /// Models of these lines, in order.
    fn fit(&mut self, lines: &[Line], memory: &mut dyn Supply) -> Result<Vec<Model>, NoMemory> {
        let (mut made, mut left) = (Vec::<Model>::new(), lines);
        let mut most = usize::MAX;
        while !left.is_empty() {
            let (count, slope) = self.cone(&left[..most.min(left.len())]);
            let mut model = self.laid_out(&left[..count], slope);
            let bytes = model.bytes();
            model.base = match self.take(bytes, memory) {
                Ok(base) => base,
                // Shorter ones, where there is no memory in one piece.
                Err(_) if bytes > PAGE && count > 1 => {
                    most = count / 2;
                    continue;
                }
                Err(none) => {
                    for model in made {
                        self.give(model.base, model.bytes(), memory);
                    }
                    return Err(none);
                }
            };
            left = &left[model.used as usize..];
            self.work.moves += model.used;
            made.push(model);
        }
        self.work.resizes += 1;
        Ok(made)
    }

    /// Trains a model again, with one more line, or makes the first of a region and size.
    fn train(
        &mut self,
        (region, which): (usize, usize),
        line: Line,
        memory: &mut dyn Supply,
    ) -> Result<(), NoMemory> {
        let models = &self.regions[region][which];
        // Of a line before all others the first model's.
        let model = models.model(line.cluster).unwrap_or(0);
        let old = models.models.get(model).map_or(&[][..], |m| &m.lines);
        let mut lines: Vec<Line> = old.iter().filter(|l| l.present != 0).copied().collect();
        lines.push(line);
        lines.sort_by_key(|l| l.cluster);
        let new = self.fit(&lines, memory)?;
        let models = &mut self.regions[region][which];
        let end = (model + 1).min(models.models.len());
        let old: Vec<Model> = models.models.splice(model..end, new).collect();
        let bytes = (models.models.len().div_ceil(MODELS) as u64 * LINE).next_power_of_two();
        let (at, before, bytes) = (models.at, models.bytes, bytes.max(PAGE));
        old.into_iter().for_each(|m| self.give(m.base, m.bytes(), memory));
        if bytes != before {
            if before > 0 {
                self.give(at, before, memory);
            }
            let at = self.take(bytes, memory)?;
            let models = &mut self.regions[region][which];
            (models.at, models.bytes) = (at, bytes);
        }
        self.held.iter_mut().for_each(Vec::clear);
        Ok(())
    }

    fn count_size(&mut self, shift: u8, more: bool) {
        match self.sizes.binary_search_by_key(&shift, |s| s.0) {
            Ok(i) if more => self.sizes[i].1 += 1,
            Ok(i) => {
                self.sizes[i].1 -= 1;
                if self.sizes[i].1 == 0 {
                    self.sizes.remove(i);
                }
            }
            Err(i) if more => self.sizes.insert(i, (shift, 1)),
            Err(_) => {}
        }
    }

    /// Looks for a page of one size as hardware does.
    #[inline]
    fn probe<E>(
        &mut self,
        core: usize,
        (key, shift): (Key, u8),
        fetch: &mut impl FnMut(u8, &[u64]) -> Result<(), E>,
    ) -> Result<Option<Found>, E> {
        let models =
            self.regions.get(key.region as usize).and_then(|r| r.iter().find(|m| m.shift == shift));
        let cluster = key.of_size(shift) / CLUSTER;
        let Some((models, model)) = models.and_then(|m| Some((m, m.model(cluster)?))) else {
            return Ok(None);
        };
        let line = models.at + (model / MODELS) as u64 * LINE;
        let mut none = Vec::new();
        let held = self.held.get_mut(core).unwrap_or(&mut none);
        if let Some(i) = held.iter().rposition(|l| *l == line) {
            held[i..].rotate_left(1);
        } else {
            if models.models.len() > MODELS * MODELS * MODELS {
                fetch(3, &[models.at])?;
            }
            fetch(2, &[line])?;
            if held.len() >= self.config.held && !held.is_empty() {
                held.remove(0);
            }
            if self.config.held > 0 {
                held.push(line);
            }
        }
        let m = &models.models[model];
        for at in m.near(cluster, self.config.error) {
            fetch(1, &[m.base + at as u64 * LINE])?;
            if m.lines[at].present != 0 && m.lines[at].cluster == cluster {
                break;
            }
        }
        Ok(self.one(key, shift))
    }

    /// The entry of a page of one size.
    fn one(&self, key: Key, shift: u8) -> Option<Found> {
        let (page, models) = (key.of_size(shift), self.models(key, shift)?);
        let (model, at) = models.find(page / CLUSTER, self.config.error)?;
        let (line, within) = (&models.models[model].lines[at], (page % CLUSTER) as usize);
        let slot = (key.region as usize) << 36 | key.page as usize;
        let entry = Entry(line.entries[within]);
        (line.present >> within & 1 == 1).then_some(Found { entry, shift, slot })
    }

    fn line_mut(&mut self, key: Key, shift: u8) -> Option<(&mut Model, usize)> {
        let error = self.config.error;
        let models = self.regions.get_mut(key.region as usize)?;
        let models = models.iter_mut().find(|m| m.shift == shift)?;
        let (model, at) = models.find(key.of_size(shift) / CLUSTER, error)?;
        Some((&mut models.models[model], at))
    }
}

impl Structure for Learned {
    #[inline]
    fn look_up<E>(
        &mut self,
        core: usize,
        key: Key,
        fetch: &mut impl FnMut(u8, &[u64]) -> Result<(), E>,
    ) -> Result<Option<Found>, E> {
        let index = (key.page >> 9) as usize % PREDICTOR;
        let first = self.predictors.get(core).map_or(12, |p| p[index]);
        if self.sizes.iter().any(|s| s.0 == first)
            && let Some(found) = self.probe(core, (key, first), fetch)?
        {
            return Ok(Some(found));
        }
        for i in 0..self.sizes.len() {
            let shift = self.sizes[i].0;
            if shift != first
                && let Some(found) = self.probe(core, (key, shift), fetch)?
            {
                if let Some(predictor) = self.predictors.get_mut(core) {
                    predictor[index] = shift;
                }
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn get(&self, key: Key) -> Option<Found> {
        self.sizes.iter().find_map(|s| self.one(key, s.0))
    }

    fn put(
        &mut self,
        key: Key,
        shift: u8,
        entry: u64,
        memory: &mut dyn Supply,
    ) -> Result<(), NoMemory> {
        let (page, region) = (key.of_size(shift), key.region as usize);
        let (cluster, within) = (page / CLUSTER, (page % CLUSTER) as usize);
        self.work.updates += 1;
        if let Some((model, at)) = self.line_mut(key, shift) {
            let line = &mut model.lines[at];
            let new = line.present >> within & 1 == 0;
            line.present |= 1 << within;
            line.entries[within] = entry;
            if new {
                self.count_size(shift, true);
            }
            return Ok(());
        }
        self.count_size(shift, true);
        let mut line = Line { cluster, present: 1 << within, ..Line::default() };
        line.entries[within] = entry;
        if region >= self.regions.len() {
            self.regions.resize_with(region + 1, Vec::new);
        }
        let which = self.regions[region].iter().position(|m| m.shift == shift);
        let which = which.unwrap_or_else(|| {
            self.regions[region].push(Models { shift, ..Models::default() });
            self.regions[region].len() - 1
        });
        let (models, error) = (&mut self.regions[region][which], self.config.error);
        if let Some(model) = models.model(cluster) {
            let model = &mut models.models[model];
            let free = model.near(cluster, error).find(|at| model.lines[*at].present == 0);
            if let Some(at) = free {
                model.lines[at] = line;
                model.used += 1;
                return Ok(());
            }
        }
        self.train((region, which), line, memory)
    }

    fn remove(&mut self, key: Key, shift: u8, memory: &mut dyn Supply) -> bool {
        let within = (key.of_size(shift) % CLUSTER) as usize;
        let Some((model, at)) = self.line_mut(key, shift) else { return false };
        let line = &mut model.lines[at];
        if line.present >> within & 1 == 0 {
            return false;
        }
        line.present &= !(1 << within);
        line.entries[within] = 0;
        model.used -= u64::from(line.present == 0);
        let empty = model.used == 0;
        self.work.updates += 1;
        self.count_size(shift, false);
        if empty {
            let cluster = key.of_size(shift) / CLUSTER;
            let models = self.regions[key.region as usize].iter_mut().find(|m| m.shift == shift);
            if let Some((models, i)) = models.and_then(|m| m.model(cluster).map(|i| (m, i))) {
                let gone = models.models.remove(i);
                self.give(gone.base, gone.bytes(), memory);
                self.held.iter_mut().for_each(Vec::clear);
            }
        }
        true
    }

    fn mark(&mut self, found: &Found, bits: u64) {
        let page = (found.slot & ((1 << 36) - 1)) as u64;
        let key = Key { region: (found.slot >> 36) as u32, page };
        let within = (key.of_size(found.shift) % CLUSTER) as usize;
        if let Some((model, at)) = self.line_mut(key, found.shift) {
            model.lines[at].entries[within] |= bits;
        }
    }

    fn shifts(&self) -> Vec<u8> {
        self.sizes.iter().map(|s| s.0).collect()
    }

    fn forget_walks(&mut self, core: usize) {
        if let Some(held) = self.held.get_mut(core) {
            held.clear();
        }
    }

    fn work(&mut self) -> &mut Work {
        &mut self.work
    }

    fn state(&self) -> StructureState {
        let models = || self.regions.iter().flatten().flat_map(|m| &m.models);
        StructureState {
            bytes: self.bytes,
            places: models().map(|m| m.lines.len() as u64).sum(),
            used: models().map(|m| m.used).sum(),
        }
    }
}
