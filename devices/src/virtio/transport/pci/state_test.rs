use std::sync::Arc;

use super::*;
use crate::bus::BusDevice;
use crate::pci::Function;
use crate::pci::msix::test_support::Vectors;
use crate::virtio::rng::Rng;
use crate::virtio::test_support::{TestLoop, memory};
use crate::virtio::transport::pci::{COMMON, QUEUE_MSIX_VECTOR, QUEUE_SELECT, TABLE};

fn device() -> (PciDevice, Arc<Vectors>) {
    let vectors = Vectors::new(2);
    let rng = Box::new(Rng::new(TestLoop::start()).unwrap());
    let made = PciDevice::new(rng, memory(), vectors.clone(), 0xc000_0000).unwrap();
    (made, vectors)
}

/// Enables the memory and MSI-X, with vector 1 for queue 0.
fn lived_in() -> PciDevice {
    let (mut device, _) = device();
    device.write_config(0x04, &[0x06, 0]);
    let msix = device.0.as_ref().unwrap().layout.msix;
    device.write_config(msix + 2, &[0, 0x80]);
    let table = u64::from(TABLE);
    device.write(table + 16, &0xfee0_0000_u32.to_le_bytes());
    device.write(table + 24, &0x4031_u32.to_le_bytes());
    device.write(table + 28, &[0; 4]);
    let common = u64::from(COMMON);
    device.write(common + QUEUE_SELECT as u64, &[0, 0]);
    device.write(common + QUEUE_MSIX_VECTOR as u64, &[1, 0]);
    device
}

#[test]
fn another_function_goes_on_where_this_one_stopped() {
    let state = lived_in().save().unwrap().unwrap();
    let (mut other, vectors) = device();
    other.restore(&state).unwrap();
    assert_eq!(other.save().unwrap().unwrap(), state);
    // Its vector delivers what the guest has written to the table.
    let plugged = other.0.as_ref().unwrap();
    super::super::Delivery(Arc::clone(&plugged.signals)).used(0);
    let message = vectors.take(1).unwrap();
    assert_eq!((message.address, message.data), (0xfee0_0000, 0x4031));
}

#[test]
fn states_of_other_functions_are_refused() {
    let good = serde_json::to_value(lived_in().save().unwrap().unwrap()).unwrap();
    for path in ["/space", "/msix", "/signals/queues", "/core/queues"] {
        for grow in [false, true] {
            let mut bad = good.clone();
            let list = bad.pointer_mut(path).unwrap().as_array_mut().unwrap();
            if grow {
                list.push(list[0].clone());
            } else {
                list.pop();
            }
            let bad: PciState = serde_json::from_value(bad).unwrap();
            assert!(device().0.restore(&bad).is_err(), "{path}");
        }
    }
}

#[test]
fn the_identity_is_not_taken_from_a_state() {
    let mut state = serde_json::to_value(lived_in().save().unwrap().unwrap()).unwrap();
    state["space"][0] = serde_json::json!(0xff);
    let state: PciState = serde_json::from_value(state).unwrap();
    let (mut other, _) = device();
    other.restore(&state).unwrap();
    let mut vendor = [0; 2];
    other.read_config(0, &mut vendor);
    assert_eq!(u16::from_le_bytes(vendor), 0x1af4);
    other.unplug();
    assert!(other.save().unwrap().is_none() && other.restore(&state).is_err());
}
