//! Instances side by side: what each costs that does nothing, how long the next one takes to start, and how many start in a second.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::adapter::Adapter;
use crate::host;
use crate::record::{Density, DensityPoint, DensityRow, Missing, Purpose, Rate, Runtime};
use crate::session::{Absent, Prepared, Running, Session};

/// Memory that is left to the host: one part in so many.
const RESERVE: u64 = 10;
/// So many instances are each looked at; beyond that, each time that there are an eighth more.
const EACH: u32 = 16;

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The most instances of a runtime at once.
    pub limit: u32,
    /// How many are being started at a time when the rate is measured.
    pub concurrency: u32,
    /// How many are started then; 0: the rate is not measured.
    pub starts: u32,
    /// Between a start and a look at memory.
    pub settle: Duration,
}

/// Who wants to know how far it is. A row is the place of an adapter among those that were given.
pub trait Progress: Sync {
    /// An adapter is prepared.
    fn prepares(&self, row: usize);
    /// So many of its instances run.
    fn holds(&self, row: usize, count: u32);
    /// So many starts side by side are done.
    fn started(&self, row: usize, count: u32);
}

/// What has been measured.
#[derive(Debug)]
pub struct Measured {
    /// The instances.
    pub density: Density,
    /// What is not there.
    pub missing: Vec<Missing>,
    /// It was cut off.
    pub interrupted: bool,
}

/// Measures, one runtime after the other. What was measured until then is returned when it is cut off.
pub fn measure(
    session: &Session,
    adapters: Vec<Adapter>,
    plan: &Plan,
    progress: &dyn Progress,
) -> Measured {
    let mut missing = Vec::new();
    let mut rows = Vec::new();
    for (index, adapter) in adapters.into_iter().enumerate() {
        if session.is_stopped() {
            break;
        }
        progress.prepares(index);
        let told = Told {
            progress,
            row: index,
        };
        match session.prepare(adapter) {
            Ok(prepared) => {
                let mut row = empty(prepared.runtime().clone(), None);
                hold(session, &prepared, plan, &mut row, told);
                if plan.starts > 0 && row.points.len() > 1 && !session.is_stopped() {
                    row.rate = Some(rate(session, &prepared, plan, told));
                }
                rows.push(row);
            }
            Err(Absent::Missing(what)) => missing.push(what),
            Err(Absent::Failed(runtime, why)) => rows.push(empty(*runtime, Some(why))),
            Err(Absent::Stopped) => break,
        }
    }
    Measured {
        density: Density {
            limit: plan.limit,
            concurrency: plan.concurrency,
            memory: session.settings().memory,
            rows,
        },
        missing,
        interrupted: session.is_stopped(),
    }
}

/// Whom to tell of which row.
#[derive(Clone, Copy)]
struct Told<'a> {
    progress: &'a dyn Progress,
    row: usize,
}

fn empty(runtime: Runtime, ended: Option<String>) -> DensityRow {
    DensityRow {
        runtime,
        points: Vec::new(),
        ended,
        rate: None,
    }
}

/// Adds instances one by one, and removes them all.
fn hold(session: &Session, prepared: &Prepared, plan: &Plan, row: &mut DensityRow, told: Told) {
    // What is not counted is not in their processes.
    let is_whole = row.runtime.uncounted.is_none();
    let mut instances: Vec<Running> = Vec::new();
    let look = |instances: &[Running], start: Option<f64>| {
        thread::sleep(plan.settle);
        let count = u32::try_from(instances.len()).unwrap_or(u32::MAX);
        let is_looked_at = is_whole
            && (count <= EACH
                || count.is_multiple_of((count / 8).next_power_of_two())
                || count == plan.limit);
        DensityPoint {
            count,
            available: host::available_memory().unwrap_or(0),
            pss: if is_looked_at {
                instances.iter().map(Running::pss).sum()
            } else {
                None
            },
            start,
        }
    };
    // Fills caches; what is wrong with it is wrong with the next one too.
    let _ = prepared.run(Purpose::Warmup, 0.0);
    row.points.push(look(&instances, None));
    let least = row.points[0].available / RESERVE;
    for count in 1..=plan.limit {
        match prepared.hold() {
            Ok((instance, start)) => {
                instances.push(instance);
                let point = look(&instances, Some(start));
                row.points.push(point);
                told.progress.holds(told.row, count);
                if point.available < least && count < plan.limit {
                    row.ended = Some("the host's memory is nearly used up".into());
                    break;
                }
            }
            Err(_) if session.is_stopped() => row.ended = Some("was cut off".into()),
            Err(why) => row.ended = Some(format!("instance {count}: {why}")),
        }
        if row.ended.is_some() {
            break;
        }
    }
    // One that has ended meanwhile was not idle.
    let ended = instances.iter_mut().find_map(Running::has_ended);
    if let Some(why) = ended {
        row.ended.get_or_insert(format!("an instance ended: {why}"));
    }
    for instance in instances {
        prepared.cut_off(instance);
    }
}

/// Starts some side by side, each to its end.
fn rate(session: &Session, prepared: &Prepared, plan: &Plan, told: Told) -> Rate {
    let next = AtomicU32::new(0);
    let done = AtomicU32::new(0);
    let started = AtomicU32::new(0);
    let failures: Mutex<BTreeMap<String, u32>> = Mutex::default();
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..plan.concurrency.min(plan.starts) {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < plan.starts && !session.is_stopped() {
                    let Some(run) = prepared.run(Purpose::Sample, 0.0) else {
                        return;
                    };
                    match run.failure {
                        None => {
                            started.fetch_add(1, Ordering::Relaxed);
                        }
                        Some(why) => {
                            // Whoever held it has only counted.
                            let mut failures = failures
                                .lock()
                                .unwrap_or_else(|poisoned| poisoned.into_inner());
                            *failures.entry(why).or_default() += 1;
                        }
                    }
                    told.progress
                        .started(told.row, done.fetch_add(1, Ordering::Relaxed) + 1);
                }
            });
        }
    });
    Rate {
        started: started.into_inner(),
        failures: failures
            .into_inner()
            .unwrap_or_else(|poisoned| poisoned.into_inner()),
        seconds: began.elapsed().as_secs_f64(),
    }
}
