//! One set of prices for the differences of all rows at once, by linear programs.
//!
//! The prices are those whose largest relative residual is least. How far each could be moved is found
//! by minimising and maximising it with all residuals within a bound.

use super::data::Price;
use anyhow::{Result, bail};
#[cfg(feature = "fit")]
use microlp::OptimizationDirection as Direction;
use serde::Serialize;
use std::collections::BTreeMap;

/// Residual within which the wider intervals are.
pub const WIDE: f64 = 0.10;

/// What is sought of a goal, in a build that has no solver.
#[cfg(not(feature = "fit"))]
#[derive(Clone, Copy)]
enum Direction {
    Minimize,
    Maximize,
}

/// Says how prices can be fitted, in a build that cannot.
///
/// # Errors
/// The build has no solver.
pub fn possible() -> Result<()> {
    if cfg!(feature = "fit") {
        return Ok(());
    }
    bail!(
        "--fit: this build has no solver of linear programs; in the repository, \
         `cargo run --release --features fit -- reproduce lmbench --fit` makes one that has"
    )
}

/// A row to be met.
pub struct Equation {
    /// Its name.
    pub name: String,
    /// How often each price is paid in it.
    pub work: BTreeMap<String, f64>,
    /// What of the published difference is not the VMM's, microseconds.
    pub other_us: f64,
    /// The published difference, microseconds.
    pub published_us: f64,
}

/// What was found.
#[derive(Serialize, Debug)]
pub struct Fit {
    /// Independent equations among the rows, as many as prices if each is determined.
    pub rank: usize,
    /// Prices that were free.
    pub free: usize,
    /// The largest relative residual.
    pub worst: f64,
    /// Prices.
    pub prices: Vec<Fitted>,
    /// Rows and their relative residuals.
    pub residuals: Vec<(String, f64)>,
}

/// A price.
#[derive(Serialize, Debug)]
pub struct Fitted {
    /// Its key in `[software]`.
    pub key: String,
    /// Nanoseconds.
    pub ns: f64,
    /// Nanoseconds between which it lies if no residual is larger than the worst.
    pub interval: [f64; 2],
    /// The same with residuals up to [`WIDE`].
    pub wide: [f64; 2],
    /// Given, tied or bounded, and why.
    pub note: String,
}

/// The free prices, and the rows as equations of them, all microseconds.
struct System<'a> {
    free: Vec<&'a Price>,
    /// By row: factors, what they should make, and the published difference.
    rows: Vec<(Vec<f64>, f64, f64)>,
}

impl<'a> System<'a> {
    fn new(equations: &[Equation], prices: &'a [Price]) -> Result<Self> {
        let free: Vec<&Price> =
            prices.iter().filter(|p| p.value.is_none() && p.tied_to.is_none()).collect();
        let mut rows = Vec::new();
        for equation in equations {
            let mut factors = vec![0.0; free.len()];
            let mut wanted = equation.published_us - equation.other_us;
            for (key, times) in &equation.work {
                let Some(price) = prices.iter().find(|p| p.key == *key) else {
                    bail!("row `{}` pays {key}, which no price is listed for", equation.name);
                };
                let key = price.tied_to.as_ref().unwrap_or(key);
                if let Some(ns) = price.value {
                    wanted -= times * ns / 1000.0;
                } else if let Some(place) = free.iter().position(|p| p.key == *key) {
                    factors[place] += times;
                }
            }
            rows.push((factors, wanted, equation.published_us));
        }
        Ok(Self { free, rows })
    }

    /// Prices with all relative residuals within `most`, if it is given, so that `goal` (a price, or the
    /// largest residual) is least, or most.
    #[cfg(not(feature = "fit"))]
    fn solve(&self, _: Option<usize>, _: Direction, _: f64) -> Result<Vec<f64>> {
        possible().map(|()| Vec::new())
    }

    /// Prices with all relative residuals within `most`, if it is given, so that `goal` (a price, or the
    /// largest residual) is least, or most.
    #[cfg(feature = "fit")]
    fn solve(&self, goal: Option<usize>, direction: Direction, most: f64) -> Result<Vec<f64>> {
        use anyhow::{Context, anyhow};
        use microlp::{ComparisonOp, Problem};
        let mut problem = Problem::new(direction);
        let weight = |is: bool| if is { 1.0 } else { 0.0 };
        let mut variables = Vec::new();
        for (i, price) in self.free.iter().enumerate() {
            let least = price.least.unwrap_or(0.0) / 1000.0;
            variables.push(problem.add_var(weight(goal == Some(i)), (least, f64::INFINITY)));
        }
        let residual = problem.add_var(weight(goal.is_none()), (0.0, most));
        for (factors, wanted, published) in &self.rows {
            for (sign, comparison) in [(-1.0, ComparisonOp::Le), (1.0, ComparisonOp::Ge)] {
                let mut terms: Vec<_> =
                    variables.iter().zip(factors).map(|(v, f)| (*v, f / published)).collect();
                terms.push((residual, sign));
                problem.add_constraint(&terms, comparison, wanted / published);
            }
        }
        let solved = problem.solve().context("the prices cannot be fitted")?;
        let solution = solved
            .into_solution()
            .map_err(|_| anyhow!("the prices cannot be fitted: the solver gave up"))?;
        variables.push(residual);
        Ok(variables.iter().map(|v| solution.var_value(*v)).collect())
    }

    /// The least and the most that a price can be.
    fn interval(&self, price: usize, most: f64) -> Result<[f64; 2]> {
        let end = |direction| -> Result<f64> {
            Ok(1000.0 * self.solve(Some(price), direction, most)?[price])
        };
        Ok([end(Direction::Minimize)?, end(Direction::Maximize)?])
    }

    /// Rank of the factors, by elimination with the largest pivot; what is below a millionth of the
    /// largest factor of its column counts as zero.
    fn rank(&self) -> usize {
        let columns = self.free.len();
        let largest: Vec<f64> = (0..columns)
            .map(|c| self.rows.iter().map(|(f, _, d)| (f[c] / d).abs()).fold(0.0, f64::max))
            .collect();
        let mut rows: Vec<Vec<f64>> = self
            .rows
            .iter()
            .map(|(f, _, d)| {
                f.iter()
                    .zip(&largest)
                    .map(|(f, l)| if *l > 0.0 { f / d / l } else { 0.0 })
                    .collect()
            })
            .collect();
        let mut rank = 0;
        for column in 0..columns {
            let pivot = (rank..rows.len())
                .max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs()));
            let Some(pivot) = pivot.filter(|p| rows[*p][column].abs() > 1e-6) else { continue };
            rows.swap(rank, pivot);
            let (done, below) = rows.split_at_mut(rank + 1);
            let first = &done[rank];
            for row in below {
                let factor = row[column] / first[column];
                for (value, of_first) in row.iter_mut().zip(first).skip(column) {
                    *value -= factor * of_first;
                }
            }
            rank += 1;
        }
        rank
    }
}

/// Fits the prices.
///
/// # Errors
/// A row pays a price that is not listed, or the programs have no solution.
pub fn fit(equations: &[Equation], prices: &[Price]) -> Result<Fit> {
    let system = System::new(equations, prices)?;
    let best = system.solve(None, Direction::Minimize, f64::INFINITY)?;
    let worst = best[system.free.len()];
    let mut found = BTreeMap::new();
    for (i, price) in system.free.iter().enumerate() {
        let wide = system.interval(i, worst.max(WIDE))?;
        // A little room, since the programs are solved to seven digits.
        let interval = system.interval(i, worst * 1.0001 + 1e-6)?;
        found.insert(price.key.as_str(), (1000.0 * best[i], interval, wide));
    }
    let mut fitted = Vec::new();
    for price in prices {
        let of = price.tied_to.as_ref().unwrap_or(&price.key);
        let (ns, interval, wide) = match (price.value, found.get(of.as_str())) {
            (Some(ns), _) => (ns, [ns; 2], [ns; 2]),
            (None, Some(found)) => *found,
            (None, None) => bail!("price {}: tied to {of}, which is given", price.key),
        };
        let note = price.source.clone();
        fitted.push(Fitted { key: price.key.clone(), ns, interval, wide, note });
    }
    let residuals = equations
        .iter()
        .zip(&system.rows)
        .map(|(equation, (factors, wanted, published))| {
            let made: f64 = factors.iter().zip(&best).map(|(f, x)| f * x).sum();
            (equation.name.clone(), (made - wanted) / published)
        })
        .collect();
    Ok(Fit { rank: system.rank(), free: system.free.len(), worst, prices: fitted, residuals })
}

/// The factor with which the sum of all relative residuals is least, of rows that are
/// `published = fixed + factor * slope`; and the factor that would meet each row alone.
///
/// The sum is convex and linear between the factors of the rows, so one of those is the best.
pub fn least_sum(rows: &[(f64, f64, f64)]) -> (f64, Vec<f64>) {
    let alone: Vec<f64> =
        rows.iter().map(|(published, fixed, slope)| (published - fixed) / slope).collect();
    let sum = |factor: f64| -> f64 {
        rows.iter().map(|(p, fixed, slope)| ((fixed + factor * slope - p) / p).abs()).sum()
    };
    let candidates = alone.iter().copied().filter(|f| *f > 0.0);
    let best = candidates.min_by(|a, b| sum(*a).total_cmp(&sum(*b))).unwrap_or(0.0);
    (best, alone)
}

#[cfg(all(test, feature = "fit"))]
mod tests {
    use super::*;

    fn price(key: &str) -> Price {
        Price { key: key.into(), value: None, tied_to: None, least: None, source: String::new() }
    }

    fn equation(work: &[(&str, f64)], published_us: f64) -> Equation {
        let work = work.iter().map(|(k, n)| ((*k).to_owned(), *n)).collect();
        Equation { name: "row".into(), work, other_us: 0.5, published_us }
    }

    #[test]
    fn prices_that_made_the_rows_are_found_again() {
        let prices = [
            Price { value: Some(400.0), ..price("given") },
            price("a"),
            price("b"),
            Price { tied_to: Some("b".into()), ..price("c") },
        ];
        // a = 1.5 us, b = c = 0.25 us.
        let rows = [
            equation(&[("given", 1.0), ("a", 1.0)], 0.5 + 0.4 + 1.5),
            equation(&[("a", 2.0), ("b", 10.0), ("c", 10.0)], 0.5 + 3.0 + 5.0),
            equation(&[("b", 4.0)], 0.5 + 1.0),
        ];
        let fit = fit(&rows, &prices).unwrap();
        assert_eq!((fit.rank, fit.free), (2, 2));
        assert!(fit.worst < 1e-6, "{fit:?}");
        for (fitted, ns) in fit.prices.iter().zip([400.0, 1500.0, 250.0, 250.0]) {
            assert!((fitted.ns - ns).abs() < 0.1, "{fitted:?}");
            assert!(fitted.wide[0] <= ns && ns <= fitted.wide[1] + 0.1, "{fitted:?}");
        }
        assert!(fit.prices[1].wide[1] - fit.prices[1].wide[0] > 100.0, "10 % of 2.4 us leave room");
    }

    #[test]
    fn rows_that_cannot_tell_prices_apart_have_a_smaller_rank_and_wide_intervals() {
        let rows =
            [equation(&[("a", 1.0), ("b", 2.0)], 4.5), equation(&[("a", 2.0), ("b", 4.0)], 8.5)];
        let fit = fit(&rows, &[price("a"), price("b")]).unwrap();
        assert_eq!((fit.rank, fit.free), (1, 2));
        assert!(fit.prices[0].interval[0] < 1.0 && fit.prices[0].interval[1] > 3999.0, "{fit:?}");
    }

    #[test]
    fn a_contradiction_is_shared_among_the_rows() {
        let rows = [equation(&[("a", 1.0)], 1.5), equation(&[("a", 1.0)], 2.5)];
        let fit = fit(&rows, &[Price { least: Some(100.0), ..price("a") }]).unwrap();
        // 1 and 2 us from one price x: (x - 1) / 1.5 = (2 - x) / 2.5 at 1.375.
        assert!((fit.prices[0].ns - 1375.0).abs() < 0.1, "{fit:?}");
        assert!((fit.worst - 0.25).abs() < 1e-6, "{fit:?}");
    }

    #[test]
    fn a_price_that_is_not_listed_is_an_error() {
        let error = fit(&[equation(&[("x", 1.0)], 1.0)], &[price("a")]).unwrap_err();
        assert!(error.to_string().contains("pays x"), "{error}");
    }

    #[test]
    fn the_least_sum_is_at_a_row_between_the_others() {
        // 5/6 of the first, 3/4 of the second, 4/3 of the third.
        let rows = [(2.0, 0.0, 1.0), (3.0, 0.0, 1.0), (4.0, 0.0, 1.0)];
        assert_eq!(least_sum(&rows), (3.0, vec![2.0, 3.0, 4.0]));
    }
}
