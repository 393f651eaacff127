//! From what has been configured to a machine that runs.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use api::command::{Fault, State};
use arch::kernel::Protocol;

use super::resources::Resources;
use super::{Control, chain, convert, whole};
use crate::config::{Config, ConsoleKind, Device, Payload};
use crate::stage::{Made, Maker, Order, OrderError};

/// What a guest is told if nobody says otherwise: the words that clients of this API count on.
const DEFAULT_WORDS: &str = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux \
                             i8042.dumbkbd swiotlb=noforce";

impl Control {
    /// Builds the machine and starts it. If that fails, all is as before.
    pub(super) fn start(&mut self) -> Result<(), Fault> {
        let asked = Instant::now();
        let order = self.order(asked).map_err(cannot_start)?;
        let started = self.orders.start(order);
        match started {
            Ok(machine) => {
                self.machine = Some(machine);
                self.set_state(State::Running);
                Ok(())
            }
            Err(error) => {
                if let OrderError::Build(_) = error {
                    self.make_again();
                }
                Err(cannot_start(chain(&error)))
            }
        }
    }

    fn order(&mut self, asked: Instant) -> Result<Order, String> {
        let payload = self.payload()?;
        let console = self.face.console(self.resources.serial.as_ref())?;
        let config = self.config()?;
        let (config, devices) = match collect(&mut self.resources, &self.maker, config) {
            Ok(collected) => collected,
            Err(why) => {
                self.make_again();
                return Err(why);
            }
        };
        Ok(Order {
            asked,
            config,
            payload,
            console,
            devices,
        })
    }

    fn payload(&mut self) -> Result<Payload, String> {
        let source = self.resources.boot_source.as_ref();
        let source = source.ok_or("there is no kernel: PUT /boot-source first")?;
        let kernel = self.face.kernel(Path::new(&source.kernel_image_path))?;
        let open = |path: &String| {
            File::open(path)
                .map_err(|error| format!("The initrd file cannot be opened: {error} {path}"))
        };
        let initrd = source.initrd_path.as_ref().map(open).transpose()?;
        Ok(Payload::Kernel {
            kernel,
            initrd,
            cmdline: self.command_line(source.boot_args.as_deref()),
            protocol: Protocol::Linux64,
        })
    }

    /// What was put, and what only the monitor knows: whether there is PCI, and where the root is.
    fn command_line(&self, words: Option<&str>) -> String {
        let mut line = words.unwrap_or(DEFAULT_WORDS).to_owned();
        let mut add = |word: &str| {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        };
        if !self.settings.pci {
            add("pci=off");
        }
        if let Some(root) = whole::root_words(&self.resources.document()) {
            add(&root);
        }
        line
    }

    fn config(&self) -> Result<Config, String> {
        let document = self.resources.document();
        let machine = &document.machine_config;
        let memory = machine.mem_size_mib.saturating_mul(convert::MIB);
        let config = Config::new(machine.vcpu_count.into(), memory)
            .and_then(|config| {
                config
                    .with_kvm_device(&self.settings.kvm_device)
                    .with_boot_timer(self.settings.boot_timer)
                    .with_keyboard(true)
                    .with_pci(self.settings.pci)
            })
            .and_then(|config| config.with_console(ConsoleKind::Serial))
            .map_err(|error| error.to_string())?;
        whole::machine(config, &document).map_err(|fault| fault.message)
    }

    /// Makes what went with a machine that could not be started. What cannot be made now is made at the
    /// next start, which says what is wrong.
    pub(super) fn make_again(&mut self) {
        let resources = &mut self.resources;
        for entry in &mut resources.drives {
            entry.make_again(&self.maker);
        }
        for entry in &mut resources.interfaces {
            entry.make_again(&self.maker);
        }
        if let Some(entry) = &mut resources.vsock {
            entry.make_again(&self.maker);
        }
    }
}

/// All devices, in the order in which the guest finds them, and the configuration with them.
fn collect(
    resources: &mut Resources,
    maker: &Maker,
    mut config: Config,
) -> Result<(Config, Vec<Made>), String> {
    let mut all = Vec::new();
    let mut add = |device: Device, made: Made| {
        all.push(made);
        config = (config.clone().with_device(device)).map_err(|error| error.to_string())?;
        Ok::<_, String>(())
    };
    for entry in &mut resources.drives {
        let (device, made) = entry.take(maker)?;
        add(device, made)?;
    }
    for entry in &mut resources.interfaces {
        let (device, made) = entry.take(maker)?;
        add(device, made)?;
    }
    if let Some(entry) = &mut resources.vsock {
        let (device, made) = entry.take(maker)?;
        add(device, made)?;
    }
    let entropy = resources.entropy.as_ref();
    let memory = resources.memory_hotplug.as_ref();
    let memory = memory.map(convert::memory_hotplug).transpose();
    let fixed = [
        resources.balloon.as_ref().map(convert::balloon),
        entropy.map(|entropy| convert::entropy(entropy.rate_limiter.as_ref())),
        memory.map_err(|fault| fault.message)?,
    ];
    let pmem = resources.pmem.iter().map(convert::pmem);
    for device in pmem.chain(fixed.into_iter().flatten()) {
        let made = maker.make(&device).map_err(|error| chain(&error))?;
        add(device, made)?;
    }
    Ok((config, all))
}

fn cannot_start(why: impl std::fmt::Display) -> Fault {
    Fault::bad(format!("Cannot start the microVM: {why}"))
}
