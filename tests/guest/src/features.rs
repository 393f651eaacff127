//! What was negotiated, by the guest's word.

use std::fs;

use crate::arguments::Failure;

const DEVICES: &str = "/sys/bus/virtio/devices";

pub(crate) fn print() -> Result<(), Failure> {
    let mut names = Vec::new();
    for entry in fs::read_dir(DEVICES)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    for name in names {
        let read = |file| fs::read_to_string(format!("{DEVICES}/{name}/{file}"));
        let (device, status, bits) = (read("device")?, read("status")?, read("features")?);
        let bits = bits.trim().bytes().zip(0..);
        let features: Vec<String> = bits
            .filter(|(bit, _)| *bit == b'1')
            .map(|(_, number): (u8, u32)| number.to_string())
            .collect();
        println!(
            "{name} {} {} {}",
            device.trim(),
            status.trim(),
            features.join(",")
        );
    }
    Ok(())
}
