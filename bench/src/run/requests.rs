//! What is asked of a monitor's API while it is watched. Its socket is waited for without looking again and again, which would take time from the
//! monitor.

use std::io::Write;
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use api::client;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

/// Between bind(2) and listen(2) there is a socket that nobody answers.
const INTERVAL: Duration = Duration::from_micros(50);

/// One request.
#[derive(Clone, Debug)]
pub struct HttpRequest {
    /// The socket.
    pub socket: PathBuf,
    /// Such as `PUT`.
    pub method: String,
    /// Such as `/snapshot/load`.
    pub path: String,
    /// JSON.
    pub body: Option<String>,
}

/// Makes the requests, in a thread. The stream ends when all have been made; before that it has what went wrong.
pub(super) fn make(
    requests: Vec<HttpRequest>,
    deadline: Instant,
) -> std::io::Result<(UnixStream, JoinHandle<()>)> {
    let (ours, mut theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let thread = thread::Builder::new()
        .name("requests".into())
        .spawn(move || {
            for request in &requests {
                if let Err(why) = one(request, deadline) {
                    // Nobody reads it any more if the start was given up.
                    let _ = theirs.write_all(why.as_bytes());
                    return;
                }
            }
        })?;
    Ok((ours, thread))
}

fn one(request: &HttpRequest, deadline: Instant) -> Result<(), String> {
    let what = format!("{} {}", request.method, request.path);
    wait_for(&request.socket, deadline).map_err(|error| format!("{what}: {error}"))?;
    let left = || deadline.saturating_duration_since(Instant::now());
    let body = request.body.as_deref().map(str::trim);
    let answer = loop {
        let answer = client::request(
            &request.socket,
            &request.method,
            &request.path,
            body.map(str::as_bytes),
            left(),
        );
        match answer {
            Err(client::Error::Connect { .. }) if !left().is_zero() => thread::sleep(INTERVAL),
            answer => break answer.map_err(|error| format!("{what}: {error}"))?,
        }
    };
    if answer.is_success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let why = answer.fault().unwrap_or(text);
    Err(format!("{what} was answered with {}: {why}", answer.status))
}

/// Waits until there is a file at `path`.
fn wait_for(path: &Path, deadline: Instant) -> Result<(), String> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let watch = || -> rustix::io::Result<_> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(
            &watch,
            directory,
            inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO,
        )?;
        Ok(watch)
    };
    let watch =
        watch().map_err(|error| format!("{} cannot be watched: {error}", directory.display()))?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    while !path.exists() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("there is no socket {}", path.display()));
        }
        let timeout = Timespec::try_from(left).ok();
        let mut fds = [PollFd::new(&watch, PollFlags::IN)];
        // Interrupted, or not: it is looked at again.
        let _ = poll(&mut fds, timeout.as_ref());
        let mut events = inotify::Reader::new(&watch, &mut buffer);
        while events.next().is_ok() {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    /// What is told of a request that is answered like this.
    fn ask(answer: Option<&'static str>) -> (String, String) {
        let directory = TempDir::new().unwrap();
        let socket = directory.as_path().join("api.sock");
        let request = HttpRequest {
            socket: socket.clone(),
            method: "PUT".into(),
            path: "/vm.resume".into(),
            body: Some("{\"a\": 1}".into()),
        };
        let (mut told, thread) =
            make(vec![request], Instant::now() + Duration::from_millis(500)).unwrap();
        told.set_nonblocking(false).unwrap();
        let server = answer.map(|answer| {
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(20));
                let (mut stream, _) = UnixListener::bind(socket).unwrap().accept().unwrap();
                let mut bytes = [0; 1024];
                let read = stream.read(&mut bytes).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                String::from_utf8_lossy(&bytes[..read]).into_owned()
            })
        });
        let mut text = String::new();
        told.read_to_string(&mut text).unwrap();
        thread.join().unwrap();
        (
            server
                .map(|server| server.join().unwrap())
                .unwrap_or_default(),
            text,
        )
    }

    #[test]
    fn a_socket_is_waited_for_and_asked() {
        let (asked, told) = ask(Some("HTTP/1.1 204 No Content\r\n\r\n"));
        assert!(asked.starts_with("PUT /vm.resume HTTP/1.1\r\n"), "{asked}");
        assert_eq!(told, "");
    }

    #[test]
    fn what_went_wrong_is_told() {
        let body =
            "HTTP/1.1 400 Bad Request\r\nContent-Length: 24\r\n\r\n{\"fault_message\": \"no.\"}";
        assert_eq!(
            ask(Some(body)).1,
            "PUT /vm.resume was answered with 400: no."
        );
        assert!(ask(None).1.contains("there is no socket"));
    }
}
