//! Memory that is filled and freed.

use std::io;

use guest_probe::pattern::Random;

use crate::arguments::{Arguments, Failure, size};

const PAGE: usize = 4096;

pub(crate) fn run(mut arguments: Arguments) -> Result<(), Failure> {
    let text = arguments.next("the size")?;
    let usage = || Failure::Usage(format!("'{text}' is no size"));
    let size = usize::try_from(size(&text).ok_or_else(usage)?).map_err(|_| usage())?;
    let wait = arguments.flag("wait");
    arguments.end()?;
    // So much at once comes from the kernel, and goes back to it.
    let mut memory = vec![0_u8; size];
    let mut random = Random::new(size as u64);
    let mut sum = 0_u64;
    for page in memory.chunks_mut(PAGE) {
        // Nobody can share these pages or take them for zeroes.
        let number = random.next();
        sum = sum.wrapping_add(number);
        for (byte, value) in page.iter_mut().zip(number.to_le_bytes()) {
            *byte = value;
        }
    }
    println!("FILLED");
    if wait {
        io::stdin().read_line(&mut String::new())?;
    }
    let mut found = 0_u64;
    for page in memory.chunks(PAGE) {
        let mut number = [0; 8];
        number[..page.len().min(8)].copy_from_slice(&page[..page.len().min(8)]);
        found = found.wrapping_add(u64::from_le_bytes(number));
    }
    if size % PAGE == 0 && found != sum {
        return Err(Failure::Check("the memory holds something else".into()));
    }
    drop(memory);
    println!("FREED");
    Ok(())
}
