use super::*;
use crate::types::{Action, VmPatch};

const BEFORE: &str = "The requested operation is not supported before starting the microVM.";
const AFTER: &str = "The requested operation is not supported after starting the microVM.";

#[test]
fn documentation_has_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.md");
    let text = std::fs::read_to_string(path).unwrap();
    let start = text.find("| request |").unwrap_or(text.len());
    let table: String = text[start..]
        .lines()
        .take_while(|line| line.starts_with('|'))
        .map(|line| format!("{line}\n"))
        .collect();
    let table_of_code = markdown();
    assert!(
        table == table_of_code,
        "the table in docs/api.md is not this one:\n{table_of_code}"
    );
}

#[test]
fn states_refuse_with_the_texts_that_clients_match() {
    let act = |action_type| Command::Act(Action { action_type });
    let check = |command: &Command, state| command.check(state).map_err(|fault| fault.message);
    let start = act(ActionType::InstanceStart);
    assert_eq!(check(&start, State::NotStarted), Ok(()));
    assert_eq!(check(&start, State::Running), Err(AFTER.into()));
    assert_eq!(check(&start, State::Paused), Err(AFTER.into()));

    let keys = act(ActionType::SendCtrlAltDel);
    assert_eq!(check(&keys, State::NotStarted), Err(BEFORE.into()));
    assert_eq!(check(&keys, State::Paused), Ok(()));

    let pause = Command::PatchVm(VmPatch {
        state: VmState::Paused,
    });
    assert_eq!(check(&pause, State::NotStarted), Err(BEFORE.into()));
    assert_eq!(check(&pause, State::Paused), Ok(()));
    assert_eq!(pause.name(), "PATCH /vm Paused");
}

/// A request is refused in one of two ways, and each state has what can be done in it.
#[test]
fn texts_fit_the_states() {
    for request in Request::ALL {
        let legal = State::ALL.map(|state| request.legal(state));
        assert_ne!(legal[0], NotAfter, "{}", request.name());
        assert_ne!(legal[0], OnlyPaused, "{}", request.name());
        assert!(!legal[1..].contains(&NotBefore), "{}", request.name());
        assert_ne!(legal[2], OnlyPaused, "{}", request.name());
        let is_possible = |legal| matches!(legal, Yes | If(_));
        assert!(legal.into_iter().any(is_possible), "{}", request.name());
        for state in State::ALL {
            assert_eq!(
                request.check(state).is_ok(),
                is_possible(request.legal(state)),
                "{} {state}",
                request.name()
            );
        }
    }
}
