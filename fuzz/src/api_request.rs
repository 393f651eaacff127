//! A request of the control API: a line with method and path, and a body.

use api::states::Request;
use api::types::VmConfig;
use api::{Command, Fault, Response, Route, State, answer, route};
use serde::Serialize;
use serde_json::Value;

/// Longest message of a refusal, in bytes, with all around it.
const MAX_MESSAGE: usize = 4096;

/// Routes a request, answers it, and sends once more what was understood.
pub fn run(input: &[u8]) {
    let mut parts = input.splitn(2, |&byte| byte == b'\n');
    let line = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let body = parts.next().unwrap_or_default();
    let (method, path) = line.split_once(' ').unwrap_or((&line, ""));
    match route(method, path, body) {
        Err(refusal) => refused(refusal.fault, refusal.deprecated),
        Ok(Route::Command { command, .. }) => {
            for state in State::ALL {
                if let Err(fault) = command.check(state) {
                    refused(fault, false);
                }
            }
            assert!(Request::ALL.contains(&Request::from(&*command)));
            read_back(&command, method, path);
        }
        Ok(Route::OpenApi | Route::Events | Route::Console) => assert!(body.is_empty()),
    }
    configure(body);
}

fn refused(fault: Fault, deprecated: bool) {
    assert_eq!(fault.status, 400);
    assert!(!fault.message.is_empty() && fault.message.len() < MAX_MESSAGE);
    let message = fault.message.clone();
    let answer = answer(&Err(fault), deprecated);
    assert_eq!(answer.status, 400);
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(body["fault_message"], message);
}

/// What reads back, sent again, reads back as the same.
fn read_back(command: &Command, method: &str, path: &str) {
    let Some(first) = body_of(command) else {
        return;
    };
    let Ok(Route::Command { command, .. }) = route(method, path, &first) else {
        panic!("{} is not taken back", String::from_utf8_lossy(&first));
    };
    let second = body_of(&command).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&first),
        String::from_utf8_lossy(&second)
    );
}

/// The body that the command has, if it has one.
fn body_of(command: &Command) -> Option<Vec<u8>> {
    fn json(value: &impl Serialize) -> Option<Vec<u8>> {
        Some(serde_json::to_vec(value).unwrap())
    }
    match command {
        Command::PutBootSource(value) => json(value),
        Command::PutMachineConfig(value) => json(value),
        Command::PatchMachineConfig(value) => json(value),
        Command::PutCpuConfig(value) => json(value),
        Command::PutDrive(value) => json(value),
        Command::PatchDrive(value) => json(value),
        Command::PutInterface(value) => json(value),
        Command::PatchInterface(value) => json(value),
        Command::PutPmem(value) => json(value),
        Command::PatchPmem(value) => json(value),
        Command::PutVsock(value) => json(value),
        Command::PutBalloon(value) => json(value),
        Command::PatchBalloon(value) => json(value),
        Command::PatchBalloonStatistics(value) => json(value),
        Command::StartHinting(value) => json(value),
        Command::PutEntropy(value) => json(value),
        Command::PutSerial(value) => json(value),
        Command::PutMemoryHotplug(value) => json(value),
        Command::PatchMemoryHotplug(value) => json(value),
        Command::PutLogger(value) => json(value),
        Command::PutMetrics(value) => json(value),
        Command::PutMmdsConfig(value) => json(value),
        Command::CreateSnapshot(value) => json(value),
        Command::LoadSnapshot(value) => json(value),
        Command::Fork(value) => json(value),
        Command::PatchConsole(value) => json(value),
        Command::PatchVm(value) => json(value),
        Command::Act(value) => json(value),
        Command::PutMmds(value) | Command::PatchMmds(value) => {
            let response = Response::Mmds(value.clone());
            Some(answer(&Ok(response), false).body)
        }
        Command::GetInstance
        | Command::GetVersion
        | Command::GetConfig
        | Command::GetMetrics
        | Command::GetMachineConfig
        | Command::GetBalloon
        | Command::GetBalloonStatistics
        | Command::GetHinting
        | Command::GetMemoryHotplug
        | Command::GetMmds
        | Command::StopHinting
        | Command::DeleteDrive(_)
        | Command::DeleteInterface(_)
        | Command::DeletePmem(_) => None,
    }
}

/// The same of a whole configuration.
fn configure(text: &[u8]) {
    let Ok((config, _)) = VmConfig::read(text) else {
        return;
    };
    let response = Response::Config(Box::new(config));
    let first = answer(&Ok(response), false).body;
    let (config, unknown) = VmConfig::read(&first).unwrap();
    assert!(unknown.is_empty());
    assert_eq!(serde_json::to_vec(&config).unwrap(), first);
}
