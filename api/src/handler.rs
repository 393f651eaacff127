//! What the server wants of a monitor.

use std::fmt;

use crate::command::{Command, Fault, Response};
use crate::events::Reader;

/// A monitor, as the server sees it. Its methods are called by the thread that serves all clients, so none of
/// them may wait.
pub trait Handler: Send + Sync + 'static {
    /// Has `command` carried out, some time, on another thread, and its result given to `reply`.
    ///
    /// Commands are carried out in the order in which they are submitted. One whose client is gone meanwhile
    /// is carried out all the same.
    fn submit(&self, command: Command, reply: Reply);

    /// A request has come, and is about to be answered. A monitor that counts does so here.
    fn seen(&self, request: &Seen<'_>) {
        let _ = request;
    }

    /// A reader of the stream of events, one JSON object a line, for a client of `GET /events`.
    fn events(&self) -> Reader;

    /// The guest's console, for a client of `GET /console`, or why there is none.
    fn console(&self) -> Result<ConsoleStream, Fault>;
}

/// What the server has seen of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen<'a> {
    /// Its method.
    pub method: &'a str,
    /// Its target, as it was sent.
    pub path: &'a str,
    /// It was refused before a command was made of it.
    pub is_refused: bool,
    /// It asks for something that Firecracker deprecates.
    pub is_deprecated: bool,
}

/// Takes what a client types and says how many bytes of it there was room for.
pub type ConsoleInput = Box<dyn FnMut(&[u8]) -> usize + Send>;
type ResultTaker = Box<dyn FnOnce(Result<Response, Fault>) + Send>;

/// A console that is attached to. Dropping it detaches.
pub struct ConsoleStream {
    /// What the guest prints, with as much of what it has printed as is kept.
    pub output: Reader,
    /// Takes what the client types. It does not wait; what there was no room for is offered again a moment
    /// later, and the client is not read until then.
    pub input: ConsoleInput,
}

impl fmt::Debug for ConsoleStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleStream")
            .field("output", &self.output)
            .finish_non_exhaustive()
    }
}

/// Where the result of a command goes. If it is dropped, the client is told that the monitor ends.
pub struct Reply {
    send: Option<ResultTaker>,
}

impl Reply {
    /// A reply that ends in `send`, which does not wait.
    pub fn new(send: impl FnOnce(Result<Response, Fault>) + Send + 'static) -> Self {
        Self {
            send: Some(Box::new(send)),
        }
    }

    /// Gives the result, from any thread.
    pub fn send(mut self, result: Result<Response, Fault>) {
        if let Some(send) = self.send.take() {
            send(result);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(send) = self.send.take() {
            send(Err(ending()));
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").finish_non_exhaustive()
    }
}

/// What a client is told whose request nobody answers any more.
fn ending() -> Fault {
    Fault {
        status: 503,
        message: "The microVM's monitor is ending.".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_reply_is_given_once_whatever_becomes_of_it() {
        let (sender, results) = mpsc::channel();
        let reply = {
            let sender = sender.clone();
            Reply::new(move |result| sender.send(result).expect("the test listens"))
        };
        reply.send(Ok(Response::Empty));
        assert_eq!(results.try_recv(), Ok(Ok(Response::Empty)));

        drop(Reply::new(move |result| {
            sender.send(result).expect("the test listens");
        }));
        assert_eq!(results.try_recv(), Ok(Err(ending())));
        assert!(results.try_recv().is_err());
    }
}
