//! Which devices a guest looks at, and when.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::bench::waterfall::step::Step;
use ::bench::waterfall::{Origin, Place as PlaceFact};
use devices::lock;
use vmm::{Access, Place, Witness};

/// Accesses that follow each other within this are one task of the guest's.
const BUSY: Duration = Duration::from_millis(1);

// Registers of the serial port, and their bits.
const SERIAL_THR: u64 = 0;
const SERIAL_IER: u64 = 1;
const SERIAL_LCR: u64 = 3;
const LCR_DLAB: u8 = 1 << 7;
const IER_RECEIVED: u8 = 1 << 0;
/// What drivers write to find out which bits there are.
const IER_PROBE: u8 = 0x0f;

/// All of them.
#[derive(Default)]
pub(super) struct Places(Mutex<Vec<(Place, Arc<Mutex<Seen>>)>>);

/// What was seen of one.
#[derive(Debug, Default)]
struct Seen {
    first: Option<Instant>,
    first_read: Option<Instant>,
    last: Option<Instant>,
    accesses: u64,
    busy: Duration,
    /// Of the serial port: its divisor latch is there in the place of other registers.
    latched: bool,
    /// Of the serial port: when its receive interrupt was enabled for the first time. Drivers do that when it is opened.
    opened: Option<Instant>,
    /// Of the serial port: when the first byte was handed to it.
    printed: Option<Instant>,
}

impl Seen {
    fn accessed(&mut self, is_serial: bool, access: Access<'_>, now: Instant) {
        self.first.get_or_insert(now);
        if access.written.is_none() {
            self.first_read.get_or_insert(now);
        }
        if let Some(last) = self.last.replace(now) {
            let since = now.saturating_duration_since(last);
            if since < BUSY {
                self.busy += since;
            }
        }
        self.accesses += 1;
        if let (true, Some(&[value, ..])) = (is_serial, access.written) {
            match access.offset {
                SERIAL_THR if !self.latched => {
                    self.printed.get_or_insert(now);
                }
                SERIAL_LCR => self.latched = value & LCR_DLAB != 0,
                SERIAL_IER if !self.latched && value & IER_RECEIVED != 0 && value != IER_PROBE => {
                    self.opened.get_or_insert(now);
                }
                _ => {}
            }
        }
    }
}

impl Places {
    /// Looks at this one.
    pub(super) fn witness(&self, place: &Place) -> Witness {
        let mut places = lock(&self.0);
        let known = places.iter().find(|(known, _)| known == place);
        let seen = match known {
            // Some are in several places.
            Some((_, seen)) => Arc::clone(seen),
            None => {
                let seen = Arc::default();
                places.push((place.clone(), Arc::clone(&seen)));
                seen
            }
        };
        let is_serial = *place == Place::Serial;
        Box::new(move |access| lock(&seen).accessed(is_serial, access, Instant::now()))
    }

    /// What they tell of the start.
    pub(super) fn steps(&self, origin: Origin, note: &mut dyn FnMut(Step, Option<Instant>)) {
        for (place, seen) in &*lock(&self.0) {
            let seen = lock(seen);
            match place {
                Place::Job => note(Step::Job, seen.first_read),
                // These are for its end, or its own marks.
                Place::Power | Place::Panic | Place::Keyboard | Place::BootTimer | Place::Other => {
                }
                place if origin == Origin::Boot => {
                    note(Step::Place(place.to_string()), seen.first);
                    note(Step::ConsoleOpened, seen.opened);
                }
                // A guest that goes on has looked at all of them before.
                _ => {}
            }
        }
    }

    /// When the guest handed the first byte to its serial port.
    pub(super) fn printed(&self) -> Option<Instant> {
        let places = lock(&self.0);
        let serial = places.iter().find(|(place, _)| *place == Place::Serial);
        serial.and_then(|(_, seen)| lock(seen).printed)
    }

    /// How often the guest has looked at each.
    pub(super) fn facts(&self) -> Vec<PlaceFact> {
        let ms = |span: Duration| span.as_secs_f64() * 1e3;
        let places = lock(&self.0);
        let seen = places.iter().filter_map(|(place, seen)| {
            let seen = lock(seen);
            let (first, last) = (seen.first?, seen.last?);
            Some(PlaceFact {
                name: place.to_string(),
                accesses: seen.accesses,
                span: ms(last.saturating_duration_since(first)),
                busy: ms(seen.busy),
            })
        });
        seen.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: &[u8], offset: u64) -> Access<'_> {
        Access {
            offset,
            written: Some(value),
        }
    }

    #[test]
    fn a_serial_port_is_opened_when_it_is_to_interrupt() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut seen = Seen::default();
        seen.accessed(true, write(&[IER_PROBE], SERIAL_IER), at(0));
        seen.accessed(true, write(&[0x80], SERIAL_LCR), at(0));
        seen.accessed(true, write(&[1], SERIAL_IER), at(5));
        seen.accessed(true, write(&[3], SERIAL_LCR), at(6));
        seen.accessed(true, write(&[2], SERIAL_IER), at(6));
        assert_eq!(seen.opened, None);
        seen.accessed(true, write(&[5], SERIAL_IER), at(7));
        seen.accessed(true, write(&[7], SERIAL_IER), at(8));
        assert_eq!((seen.opened, seen.accesses), (Some(at(7)), 7));
        assert_eq!(seen.first_read, None);
        let mut other = Seen::default();
        other.accessed(false, write(&[5], SERIAL_IER), start);
        assert_eq!(other.opened, None);
    }

    #[test]
    fn what_follows_at_once_is_one_task() {
        let start = Instant::now();
        let read = Access {
            offset: 0,
            written: None,
        };
        let places = Places::default();
        let _ = (
            places.witness(&Place::Pic),
            places.witness(&Place::Pic),
            places.witness(&Place::Job),
        );
        assert_eq!(places.facts(), []);
        let pic = Arc::clone(&lock(&places.0)[0].1);
        for us in [0, 400, 900, 5000] {
            lock(&pic).accessed(false, read, start + Duration::from_micros(us));
        }
        let facts = places.facts();
        assert_eq!((facts.len(), facts[0].accesses), (1, 4));
        assert_eq!((facts[0].span, facts[0].busy), (5.0, 0.9));
        let mut steps = Vec::new();
        places.steps(Origin::Boot, &mut |step, then| {
            steps.extend(then.map(|then| (step, then)));
        });
        assert_eq!(steps, [(Step::Place("8259".into()), start)]);
        places.steps(Origin::Template, &mut |_, then| assert_eq!(then, None));
    }
}
