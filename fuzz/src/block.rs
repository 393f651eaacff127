//! A guest with a disk: requests of all kinds that are most often almost right, several in flight, on
//! all kinds of images and both engines; and a host that changes sizes, limits and files meanwhile.

use std::collections::HashMap;
use std::sync::Arc;

use devices::backend::disk::{Cache, EngineKind, Format, Overlay};
use devices::bus::BusDevice;
use devices::rate_limiter::{Bucket, RateLimit};
use devices::virtio::block::{Block, BlockConfig, BlockControl};
use devices::virtio::worker::EventLoop;
use vm_memory::{Bytes, GuestAddress};

use super::images::{Layout, Memory, prepare, qcow2};
use super::model::Model;
use super::{ENTRIES, Guest, Input, MAX_OPERATIONS, RINGS, RINGS_SIZE};

/// Bytes of a disk at first.
const SIZE: u64 = 1 << 20;
/// Entries of a queue, as the driver sets it up, and those that a request has for itself.
const SLOT: u16 = 8;
/// Where headers, ranges and answers are, a page a request, and data, 128 KiB a request.
const HEADERS: u64 = 0x8_0000;
const STATUS: u64 = 0x800;
const DATA: u64 = 0x1000_0000;
const DATA_SIZE: u64 = 0x2_0000;
/// Answers that a driver may get.
const LAST_STATUS: u8 = 2;

/// A guest, the host's end of its disk, and what the driver waits for.
pub(crate) struct Disks {
    guest: Guest,
    control: BlockControl,
    base: Arc<Memory>,
    other: Memory,
    is_raw: bool,
    queues: u16,
    /// What may be written for a request, by queue and head.
    given: HashMap<(u16, u16), u32>,
    used: [u16; 8],
    /// What is on a disk with one queue, while the driver keeps to the rules.
    model: Option<Model>,
    /// The driver has broken the rules: nobody knows what comes of it.
    wild: bool,
}

/// Runs one guest.
pub fn run(input: &[u8]) {
    prepare();
    let mut input = Input(input);
    let (kind, shape) = (input.u8(), input.u8());
    let layout = Layout {
        cluster_bits: 9 + u32::from(shape >> 4) % 8,
        version: 2 + u32::from(shape & 1),
        refcount_order: u32::from(shape >> 1) % 7,
        zstd: shape & 2 != 0,
        size: SIZE,
    };
    let is_qcow2 = kind & 1 != 0;
    let base = if is_qcow2 {
        Memory::new(&qcow2(layout), 0)
    } else {
        Memory::new(&[], SIZE)
    };
    let overlay = Memory::new(&[], 0);
    let config = BlockConfig {
        format: if is_qcow2 { Format::Qcow2 } else { Format::Raw },
        overlay: match kind >> 1 & 3 {
            0 | 1 => Overlay::None,
            2 => Overlay::Temporary,
            _ => Overlay::File(overlay.path()),
        },
        ..config(base.path(), kind, input.u8())
    };
    Disks::run(config, base, true, &mut input);
}

/// What `kind` says beyond the image: bit 3 and 4 the engine, bit 5 the cache, bits 6 and 7 whether it
/// can be written to; `rest` has the number of queues, and limits.
pub(crate) fn config(path: std::path::PathBuf, kind: u8, rest: u8) -> BlockConfig {
    BlockConfig {
        read_only: kind >> 6 == 3,
        // A ring costs more than all else.
        engine: if kind >> 3 & 3 == 3 {
            EngineKind::IoUring
        } else {
            EngineKind::Sync
        },
        cache: if kind & 0x20 == 0 {
            Cache::Writeback
        } else {
            Cache::Unsafe
        },
        queues: 1 + u16::from(rest & 3),
        rate: rate(rest >> 4),
        ..BlockConfig::new("disk", path)
    }
}

fn rate(shape: u8) -> RateLimit {
    RateLimit {
        bandwidth: (shape & 4 != 0).then(|| Bucket::new(4096, 1, 0)).flatten(),
        ops: (shape & 8 != 0).then(|| Bucket::new(2, 1, 1)).flatten(),
    }
}

impl Disks {
    /// Runs a guest with the disk in `base`, unless it is none. `is_good`: each of its sectors is one
    /// of its own.
    pub(crate) fn run(config: BlockConfig, base: Memory, is_good: bool, input: &mut Input<'_>) {
        let (queues, is_raw) = (config.queues, config.format == Format::Raw);
        let mut control = None;
        let made = Guest::try_new(|event_loop: Arc<dyn EventLoop>| {
            let (block, its_control) = Block::new(config, event_loop)?;
            control = Some(its_control);
            Ok::<_, devices::virtio::block::Error>(block)
        });
        let (Ok(guest), Some(control)) = (made, control) else {
            return;
        };
        let mut disks = Self {
            guest,
            control,
            base: Arc::new(base),
            other: Memory::new(&[0xab; 512], SIZE / 2),
            is_raw,
            queues,
            given: HashMap::new(),
            used: [0; 8],
            model: (is_good && queues == 1).then(Model::new),
            wild: false,
        };
        disks.start(input.u8());
        for _ in 0..MAX_OPERATIONS {
            if input.0.is_empty() {
                break;
            }
            disks.operate(input);
            disks.check();
        }
        // Whatever is in flight ends.
        disks.guest.write(0x70, 0);
        disks.check();
    }

    /// The driver starts afresh, with clean rings.
    fn start(&mut self, features: u8) {
        // Requests in flight end here.
        self.guest.write(0x70, 0);
        self.check();
        let rings = vec![0; usize::from(self.queues) * RINGS_SIZE as usize];
        let memory = &self.guest.memory;
        memory.write_slice(&rings, GuestAddress(RINGS)).unwrap();
        self.given.clear();
        self.used = [0; 8];
        self.settle();
        self.wild = false;
        self.guest.start(features);
    }

    /// No request is in flight any more.
    fn settle(&mut self) {
        if let Some(model) = &mut self.model {
            model.settle();
            if self.wild {
                model.forget();
            }
        }
    }

    fn operate(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0..9 => return self.request(input),
            9 => self.guest.event_loop.turn_for(1),
            10 => {
                let shape = input.u8();
                if shape & 3 != 0 {
                    self.guest.event_loop.turn();
                }
                self.start(shape >> 2);
            }
            // Reset, and that is all until someone starts again.
            11 if input.u8().is_multiple_of(8) => self.guest.write(0x70, 0),
            11 => self.reset_queue(input),
            12 => self.host(input),
            13 => {
                let value = input.u8();
                self.guest.device.write(0x120, &[value]);
                self.guest.read(0x100 + u64::from(value & 0x3c));
            }
            14 => {
                self.wild = true;
                let offset = u64::from(input.u16() % 0x200);
                let value = input.u32();
                self.guest.write(offset, value);
            }
            _ => {
                // Rings, headers or what lies between.
                self.wild = true;
                let gpa = RINGS + u64::from(input.u32() % 0x8_0000);
                let count = usize::from(input.u8());
                let data = input.bytes(count).to_vec();
                let _ = self.guest.memory.write_slice(&data, GuestAddress(gpa));
                self.guest.write(0x50, 0);
            }
        }
        self.guest.event_loop.turn();
    }

    /// RING_RESET: stops a queue with its requests in flight, and sets it up again, where it was.
    fn reset_queue(&mut self, input: &mut Input<'_>) {
        let shape = input.u8();
        let queue = u16::from(shape) % self.queues;
        self.guest.write(0x30, queue.into());
        self.guest.write(0xc0, 1);
        self.check();
        if self.guest.read(0x44) != 0 {
            return;
        }
        let base = RINGS + u64::from(queue) * RINGS_SIZE;
        let rings = vec![0; RINGS_SIZE as usize];
        let memory = &self.guest.memory;
        memory.write_slice(&rings, GuestAddress(base)).unwrap();
        self.given.retain(|(other, _), _| *other != queue);
        self.used[usize::from(queue)] = 0;
        if self.queues == 1 {
            self.settle();
        }
        self.guest.avail[usize::from(queue)] = 0;
        if shape & 0x80 == 0 {
            self.guest.write(0x38, ENTRIES.into());
            self.guest.write(0x44, 1);
        }
    }

    /// What the host does.
    fn host(&mut self, input: &mut Input<'_>) {
        let shape = input.u8();
        match shape % 4 {
            0 => self.control.set_rate_limit(rate(shape >> 4)),
            1 => {
                self.base.set_len(u64::from(input.u16() % 0x2000) * 256);
                let _ = self.control.resize();
            }
            2 => {
                let file = if shape & 4 == 0 {
                    &self.other
                } else {
                    &*self.base
                };
                let _ = self.control.replace_file(&file.path());
            }
            // Shorter than anyone was told.
            _ => self.base.set_len(u64::from(input.u16()) * 16),
        }
        match (&mut self.model, shape % 4) {
            (_, 0) => {}
            // An image that has lost a part is no good any more.
            (model, 1 | 3) if !self.is_raw => *model = None,
            (Some(model), _) => model.forget(),
            (None, _) => {}
        }
        let counters = self.control.counters();
        let bytes = counters.read_bytes | counters.write_bytes;
        assert!(bytes.is_multiple_of(512));
    }

    /// A request, which is most often right but for one thing.
    fn request(&mut self, input: &mut Input<'_>) {
        let (kind, shape) = (input.u8(), input.u8());
        let queue = u16::from(kind >> 4) % self.queues;
        let avail = self.guest.avail[usize::from(queue)];
        let head = avail % (ENTRIES / SLOT) * SLOT;
        if self.given.contains_key(&(queue, head)) && !self.wild {
            // All are in flight.
            return self.guest.event_loop.turn();
        }
        let number = u64::from(queue) * 8 + u64::from(head / SLOT);
        let page = HEADERS + number * 0x1000;
        let kind = [0, 1, 4, 8, 11, 13, 0, 1, 0, 1, 13, 11, 1, 0, 3, 255][usize::from(kind % 16)];
        let sector = match shape >> 6 {
            3 => u64::from(input.u32()) << (input.u8() % 40),
            _ => u64::from(input.u16() % 2048),
        };
        let mut header = [0; 16];
        header[..4].copy_from_slice(&u32::to_le_bytes(kind));
        header[8..].copy_from_slice(&sector.to_le_bytes());
        // Address, length, and whether the device may write.
        let mut buffers = Vec::new();
        let memory = self.guest.memory.clone();
        memory.write_slice(&header, GuestAddress(page)).unwrap();
        let header_len = if shape & 0x30 == 0x30 {
            u32::from(input.u8() % 20)
        } else {
            16
        };
        buffers.push((page, header_len, false));
        let pieces = u64::from(shape & 3);
        // The sectors that it is about.
        let mut places = Vec::new();
        if matches!(kind, 11 | 13) {
            for index in 0..=pieces {
                let mut range = [0; 16];
                let (first, count) = (input.u16() % 2048, input.u16() % 2048);
                places.push((first.into(), count.into()));
                range[..8].copy_from_slice(&u64::from(first).to_le_bytes());
                range[8..12].copy_from_slice(&u32::from(count).to_le_bytes());
                let flags = input.u8();
                range[12] = flags & 1 | if flags >= 0xf0 { flags & 6 } else { 0 };
                let at = page + 0x100 + 16 * index;
                memory.write_slice(&range, GuestAddress(at)).unwrap();
            }
            buffers.push((page + 0x100, 16 * (pieces as u32 + 1), false));
        } else if kind != 4 {
            let start = DATA + number % 8 * DATA_SIZE;
            let mut gpa = start;
            for _ in 0..=pieces {
                let sectors = u32::from(input.u8());
                let len = if shape & 8 == 0 {
                    sectors % 64 * 512
                } else {
                    sectors * 3
                };
                buffers.push((gpa, len, matches!(kind, 0 | 8)));
                gpa += u64::from(len);
            }
            places.push((sector, (gpa - start) / 512));
        }
        let mut is_right = header_len == 16;
        buffers.push((page + STATUS, 1, true));
        if shape & 0x30 == 0x20 {
            // No answer, a buffer the other way round, somewhere else, or of another length.
            match input.u8() {
                mistake @ 0..0x40 => {
                    let at = usize::from(mistake) % buffers.len();
                    buffers[at].2 ^= true;
                    is_right = false;
                }
                0x40..0x60 => {
                    buffers.pop();
                    is_right = false;
                }
                mistake @ 0x60..0x80 => {
                    let at = usize::from(mistake) % buffers.len();
                    // It may be anyone's memory.
                    self.wild = true;
                    buffers[at].0 = u64::from(input.u32()) << (mistake & 0x1c);
                }
                mistake @ 0x80..0xa0 => {
                    let at = usize::from(mistake) % buffers.len();
                    self.wild = true;
                    buffers[at].1 = input.u32();
                }
                _ => {}
            }
        }
        memory
            .write_obj(0xeeu8, GuestAddress(page + STATUS))
            .unwrap();
        let writable = buffers.iter().filter(|buffer| buffer.2);
        let writable = writable.fold(0u32, |all, buffer| all.saturating_add(buffer.1));
        self.given.insert((queue, head), writable);
        if !self.wild {
            self.expect(head, kind, is_right, &places);
        }
        self.guest.submit(queue, head, &buffers);
        // Without a kick the next one comes with it.
        if shape & 4 == 0 {
            self.guest.write(0x50, queue.into());
            self.guest.event_loop.turn();
        }
    }

    /// What comes of a request, which may be less right than it looks.
    fn expect(&mut self, head: u16, kind: u32, is_right: bool, places: &[(u64, u64)]) {
        let Some(model) = &mut self.model else {
            return;
        };
        match kind {
            0 if is_right => model.read(head, places[0].0, places[0].1),
            1 if is_right => {
                let value = model.next_value();
                let data = vec![value; (places[0].1 * 512) as usize];
                let gpa = DATA + u64::from(head / SLOT) * DATA_SIZE;
                let memory = &self.guest.memory;
                memory.write_slice(&data, GuestAddress(gpa)).unwrap();
                model.write(head, places, Some(value));
            }
            11 if is_right => model.write(head, places, None),
            13 if is_right => model.write(head, places, Some(0)),
            1 | 11 | 13 => model.write(head, &[(0, u64::MAX)], None),
            _ => {}
        }
    }

    /// Each request is returned once, and nothing was written that its driver did not give.
    fn check(&mut self) {
        let memory = self.guest.memory.clone();
        for queue in 0..self.queues {
            let ring = RINGS + u64::from(queue) * RINGS_SIZE + 0x2000;
            let index: u16 = memory.read_obj(GuestAddress(ring + 2)).unwrap();
            let used = &mut self.used[usize::from(queue)];
            if self.wild {
                *used = index;
                continue;
            }
            while *used != index {
                let at = ring + 4 + 8 * u64::from(*used % ENTRIES);
                let head: u32 = memory.read_obj(GuestAddress(at)).unwrap();
                let len: u32 = memory.read_obj(GuestAddress(at + 4)).unwrap();
                let given = self.given.remove(&(queue, head as u16));
                assert!(
                    len <= given.expect("a request in flight"),
                    "{len} of {given:?}"
                );
                let number = u64::from(queue) * 8 + u64::from(head as u16 / SLOT);
                let status = HEADERS + number * 0x1000 + STATUS;
                let status: u8 = memory.read_obj(GuestAddress(status)).unwrap();
                assert!(status <= LAST_STATUS || status == 0xee, "{status}");
                if let Some(model) = &mut self.model {
                    let start = DATA + u64::from(head as u16 / SLOT) * DATA_SIZE;
                    model.ended(head as u16, status == 0, |offset, bytes| {
                        let at = GuestAddress(start + offset);
                        memory.read_slice(bytes, at).unwrap();
                    });
                }
                *used = used.wrapping_add(1);
            }
        }
    }
}
