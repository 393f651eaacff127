//! Whether bytes look random at all.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;

use crate::arguments::{Arguments, Failure};

pub(crate) fn run(mut arguments: Arguments) -> Result<(), Failure> {
    let path = arguments.next("the file")?;
    let count: usize = arguments.number("bytes", 16 << 10)?;
    arguments.end()?;
    let mut bytes = vec![0; count];
    File::open(&path)?.read_exact(&mut bytes)?;
    examine(&bytes).map_err(|what| Failure::Check(format!("{path}: {what}")))?;
    println!("{count} bytes look random");
    Ok(())
}

/// Bounds that randomness breaks less than once in a million times.
fn examine(bytes: &[u8]) -> Result<(), String> {
    let bits = bytes.len() as f64 * 8.0;
    let ones: u32 = bytes.iter().map(|byte| byte.count_ones()).sum();
    let deviation = (f64::from(ones) - bits / 2.0) / (bits / 4.0).sqrt();
    if deviation.abs() > 5.0 {
        return Err(format!("{ones} of {bits} bits are ones"));
    }
    let mut counts = [0_u32; 256];
    for &byte in bytes {
        counts[usize::from(byte)] += 1;
    }
    let expected = bytes.len() as f64 / 256.0;
    let chi_square: f64 = counts
        .iter()
        .map(|&count| (f64::from(count) - expected).powi(2) / expected)
        .sum();
    // 255 degrees of freedom: mean 255, standard deviation 22.6.
    if !(140.0..400.0).contains(&chi_square) {
        return Err(format!("the bytes are not spread evenly ({chi_square:.0})"));
    }
    let mut seen = HashSet::new();
    if !bytes.chunks_exact(8).all(|block| seen.insert(block)) {
        return Err("eight bytes come twice".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_probe::pattern::Random;

    #[test]
    fn noise_passes_and_other_things_fail() {
        let mut random = Random::new(1);
        let noise: Vec<u8> = (0..2048)
            .flat_map(|_| random.next().to_le_bytes())
            .collect();
        assert_eq!(examine(&noise), Ok(()));
        assert!(examine(&[0; 16384]).is_err());
        let counter: Vec<u8> = (0..16384_u32).map(|i| i as u8).collect();
        assert!(examine(&counter).is_err());
        let twice = [&noise[..], &noise[80..88]].concat();
        assert!(examine(&twice).unwrap_err().contains("twice"));
    }
}
