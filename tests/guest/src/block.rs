//! Disks: checked data in every order.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;

use guest_probe::pattern::{Pattern, Random, SECTOR};
use rustix::fs::{Advice, FallocateFlags, OFlags, fadvise, fallocate};

use crate::arguments::{Arguments, Failure};

/// O_DIRECT wants buffers aligned like this at most.
const ALIGNMENT: usize = 4096;
/// The largest read or write, in blocks.
const MAX_BLOCKS: u64 = 8;

/// Where and what.
struct Target {
    path: String,
    direct: bool,
    from: u64,
    size: u64,
    pattern: Pattern,
}

pub(crate) fn run(mut arguments: Arguments) -> Result<(), Failure> {
    let command = arguments.next("what to do")?;
    let path = arguments.next("the file")?;
    let from = arguments.number("from", 0)?;
    let size: u64 = arguments.number("size", 0)?;
    let direct = arguments.flag("direct");
    let pattern = Pattern::new(arguments.number("seed", 1)?);
    let size = match size {
        0 => File::open(&path)?.seek(SeekFrom::End(0))? - from,
        size => size,
    };
    let target = Target {
        path,
        direct,
        from,
        size,
        pattern,
    };
    let sector = SECTOR as u64;
    if !target.from.is_multiple_of(sector) || !target.size.is_multiple_of(sector) {
        return Err(Failure::Usage("only whole sectors".into()));
    }
    match command.as_str() {
        "verify" => {
            let plan = Plan {
                block: arguments.number("block", 4096)?,
                threads: arguments.number("threads", 1)?,
                operations: arguments.number("operations", 1000)?,
                fsync_every: arguments.number("fsync-every", u64::MAX)?,
                sequential: arguments.flag("sequential"),
            };
            arguments.end()?;
            verify(&target, &plan)
        }
        "fill" => {
            let generation = arguments.number("generation", 1)?;
            arguments.end()?;
            let file = target.open(true)?;
            target.fill(&file, generation, 256 << 10)?;
            Ok(file.sync_all()?)
        }
        "check" => {
            let generation = arguments.number("generation", 1)?;
            arguments.end()?;
            target.check(generation)
        }
        "generations" => {
            arguments.end()?;
            target.generations()
        }
        "durable" => {
            let block = arguments.number("block", 16 << 10)?;
            let generations = arguments.number("generations", u64::MAX)?;
            arguments.end()?;
            durable(&target, block, generations)
        }
        "zero" => {
            let unmap = arguments.flag("unmap");
            arguments.end()?;
            zero(&target, unmap)
        }
        other => Err(Failure::Usage(format!("unknown: block {other}"))),
    }
}

/// Memory for O_DIRECT.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    size: usize,
}

impl Buffer {
    fn new(size: usize) -> Self {
        let bytes = vec![0; size + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        Self { bytes, start, size }
    }

    fn get(&mut self, size: usize) -> &mut [u8] {
        assert!(size <= self.size);
        &mut self.bytes[self.start..self.start + size]
    }
}

impl Target {
    fn open(&self, write: bool) -> io::Result<File> {
        let flags = if self.direct {
            OFlags::DIRECT
        } else {
            OFlags::empty()
        };
        OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(flags.bits().cast_signed())
            .open(&self.path)
    }

    /// What is read next comes from the device.
    fn forget_cached(&self, file: &File) -> io::Result<()> {
        file.sync_data()?;
        Ok(fadvise(file, self.from, None, Advice::DontNeed)?)
    }

    fn wrong(&self, offset: u64, what: impl std::fmt::Display) -> Failure {
        Failure::Check(format!("{}, near byte {offset}: {what}", self.path))
    }

    fn fill(&self, file: &File, generation: u64, block: usize) -> io::Result<()> {
        let mut buffer = Buffer::new(block);
        let mut offset = self.from;
        let end = self.from + self.size;
        while offset < end {
            let bytes = buffer.get((end - offset).min(block as u64) as usize);
            self.pattern
                .write(offset / SECTOR as u64, generation, bytes);
            file.write_all_at(bytes, offset)?;
            offset += bytes.len() as u64;
        }
        Ok(())
    }

    fn check(&self, generation: u64) -> Result<(), Failure> {
        let file = self.open(false)?;
        self.forget_cached(&file)?;
        let mut buffer = Buffer::new(256 << 10);
        let mut offset = self.from;
        let end = self.from + self.size;
        while offset < end {
            let bytes = buffer.get((end - offset).min(256 << 10) as usize);
            file.read_exact_at(bytes, offset)?;
            self.pattern
                .check(offset / SECTOR as u64, generation, bytes)
                .map_err(|mismatch| self.wrong(offset, mismatch))?;
            offset += bytes.len() as u64;
        }
        println!("checked {} bytes", self.size);
        Ok(())
    }

    fn generations(&self) -> Result<(), Failure> {
        let file = self.open(false)?;
        self.forget_cached(&file)?;
        let mut bytes = vec![0; usize::try_from(self.size).unwrap_or_default()];
        file.read_exact_at(&mut bytes, self.from)?;
        let (oldest, newest) = self
            .pattern
            .generations(self.from / SECTOR as u64, &bytes)
            .map_err(|mismatch| self.wrong(self.from, mismatch))?;
        println!("GENERATIONS {oldest} {newest}");
        Ok(())
    }
}

/// How to go about it.
struct Plan {
    block: u64,
    threads: u64,
    operations: u64,
    fsync_every: u64,
    sequential: bool,
}

/// Each thread has a part of the disk for itself, and knows what it wrote.
fn verify(target: &Target, plan: &Plan) -> Result<(), Failure> {
    if plan.block == 0 || !plan.block.is_multiple_of(SECTOR as u64) || plan.threads == 0 {
        return Err(Failure::Usage("only blocks of whole sectors".into()));
    }
    let blocks = target.size / plan.block / plan.threads;
    if blocks == 0 {
        return Err(Failure::Usage("there is less than a block a thread".into()));
    }
    thread::scope(|scope| {
        let threads: Vec<_> = (0..plan.threads)
            .map(|number| scope.spawn(move || verify_part(target, plan, number, blocks)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Failure::Check("a thread panicked".into())))
        })
    })?;
    println!(
        "verified {} operations on {} threads",
        plan.operations, plan.threads
    );
    Ok(())
}

fn verify_part(target: &Target, plan: &Plan, number: u64, blocks: u64) -> Result<(), Failure> {
    let file = target.open(true)?;
    let start = target.from + number * blocks * plan.block;
    let mut random = Random::new(number.wrapping_add(plan.operations));
    let mut generations = vec![0_u64; blocks as usize];
    let mut buffer = Buffer::new((MAX_BLOCKS * plan.block) as usize);
    let mut generation = 0;
    let mut next = 0;
    for operation in 1..=plan.operations.div_ceil(plan.threads) {
        let first = if plan.sequential {
            next % blocks
        } else {
            random.below(blocks)
        };
        let count = (1 + random.below(MAX_BLOCKS)).min(blocks - first);
        next = first + count;
        let range = first as usize..(first + count) as usize;
        let offset = start + first * plan.block;
        let bytes = buffer.get((count * plan.block) as usize);
        if random.below(10) < 6 {
            generation += 1;
            target
                .pattern
                .write(offset / SECTOR as u64, generation, bytes);
            file.write_all_at(bytes, offset)?;
            generations[range].fill(generation);
        } else {
            file.read_exact_at(bytes, offset)?;
            check_blocks(target, plan.block, offset, bytes, &generations[range])?;
        }
        if operation.is_multiple_of(plan.fsync_every) {
            file.sync_data()?;
        }
    }
    target.forget_cached(&file)?;
    let mut first = 0;
    while first < blocks {
        let count = MAX_BLOCKS.min(blocks - first);
        let offset = start + first * plan.block;
        let bytes = buffer.get((count * plan.block) as usize);
        file.read_exact_at(bytes, offset)?;
        let range = first as usize..(first + count) as usize;
        check_blocks(target, plan.block, offset, bytes, &generations[range])?;
        first += count;
    }
    Ok(())
}

/// Blocks that were never written (generation 0) may hold anything.
fn check_blocks(
    target: &Target,
    block: u64,
    offset: u64,
    bytes: &[u8],
    generations: &[u64],
) -> Result<(), Failure> {
    let blocks = bytes.chunks_exact(block as usize).zip(generations);
    for (number, (bytes, &generation)) in (0..).zip(blocks) {
        if generation != 0 {
            let offset = offset + number * block;
            target
                .pattern
                .check(offset / SECTOR as u64, generation, bytes)
                .map_err(|mismatch| target.wrong(offset, mismatch))?;
        }
    }
    Ok(())
}

/// What was printed is on the disk, whatever happens from now on.
fn durable(target: &Target, block: usize, generations: u64) -> Result<(), Failure> {
    let file = target.open(true)?;
    for generation in 1..=generations {
        target.fill(&file, generation, block)?;
        file.sync_data()?;
        println!("DURABLE {generation}");
    }
    Ok(())
}

fn zero(target: &Target, unmap: bool) -> Result<(), Failure> {
    let file = target.open(true)?;
    let how = if unmap {
        FallocateFlags::PUNCH_HOLE
    } else {
        FallocateFlags::ZERO_RANGE
    };
    let flags = how | FallocateFlags::KEEP_SIZE;
    fallocate(&file, flags, target.from, target.size).map_err(io::Error::from)?;
    target.forget_cached(&file)?;
    let mut buffer = Buffer::new(256 << 10);
    let mut offset = target.from;
    let end = target.from + target.size;
    while offset < end {
        let bytes = buffer.get((end - offset).min(256 << 10) as usize);
        file.read_exact_at(bytes, offset)?;
        if let Some(at) = bytes.iter().position(|&byte| byte != 0) {
            return Err(target.wrong(offset + at as u64, "not zero"));
        }
        offset += bytes.len() as u64;
    }
    println!("zeroed {} bytes", target.size);
    Ok(())
}
