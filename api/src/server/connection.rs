//! One client, from its first byte to its last.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::net::UnixStream;
use tokio::time::{self, Sleep};

use super::link::{Io, Link, Phase, Switched, unless_stopped};
use super::{Seat, Shared, console, service};

/// Bytes of a request before its body. A client's buffer never grows beyond.
const MAX_HEAD: usize = 16 << 10;
/// Headers of a request.
const MAX_HEADERS: usize = 100;

/// How HTTP ended.
enum End {
    /// As it should.
    Ordered,
    /// With what is not HTTP, or half of it.
    Unclear,
    /// The client or its connection has failed.
    Broken,
    /// A request was not complete in time.
    Late,
    /// With a change of protocol. These bytes came already.
    Console(Box<Switched>, Bytes),
}

/// Serves a client until it or the server wants no more.
pub(super) async fn serve(socket: UnixStream, seat: Seat) {
    let shared = &seat.shared;
    let link = Rc::new(Link::new(socket));
    // One that says nothing costs no buffer, and no room for what may become of it: hence the boxes.
    unless_stopped(shared, async { drop(link.readable().await) }).await;
    match Box::pin(speak(&link, shared)).await {
        End::Broken => return,
        End::Ordered => {}
        // The library has said so already, in most cases.
        End::Unclear => link.refuse(400, "This is not a whole request of HTTP/1.1."),
        End::Late => {
            let limit = shared.settings.request_limit.as_secs_f32();
            link.refuse(
                400,
                &format!("The request was not complete within {limit} seconds."),
            );
        }
        End::Console(switched, early) => {
            Box::pin(console::run(&link, shared, *switched, &early)).await;
        }
    }
    Box::pin(link.linger(shared)).await;
}

/// Speaks HTTP.
async fn speak(link: &Rc<Link>, shared: &Rc<Shared>) -> End {
    let service = service_fn(|request| {
        let (link, shared) = (Rc::clone(link), Rc::clone(shared));
        async move { service::serve(&link, &shared, request).await }
    });
    let mut connection = http1::Builder::new()
        .auto_date_header(false)
        .half_close(true)
        // hyper's would run while there is no request as well.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .title_case_headers(true)
        .serve_connection(Io(Rc::clone(link)), service);

    let mut stop = pin!(shared.until_stop());
    let mut is_stopping = false;
    let mut limit = Limit::default();
    let end = poll_fn(|cx| {
        if !is_stopping && stop.as_mut().poll(cx).is_ready() {
            is_stopping = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(Ok(())) => return Poll::Ready(End::Ordered),
            Poll::Ready(Err(error)) if error.is_parse() || error.is_incomplete_message() => {
                return Poll::Ready(End::Unclear);
            }
            Poll::Ready(Err(_)) => return Poll::Ready(End::Broken),
            Poll::Pending => {}
        }
        match link.phase() {
            // Nobody waits for a client who has not even finished to ask.
            Phase::Partial(_) if is_stopping => Poll::Ready(End::Broken),
            phase => limit.poll(cx, phase, shared).map(|()| End::Late),
        }
    });
    match (end.await, link.take_console()) {
        (End::Ordered, Some(switched)) => {
            End::Console(Box::new(switched), connection.into_parts().read_buf)
        }
        (end, _) => end,
    }
}

/// The time limit of a request that is not complete.
#[derive(Default)]
struct Limit {
    phase: Option<Phase>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Limit {
    fn poll(&mut self, cx: &mut std::task::Context<'_>, phase: Phase, shared: &Shared) -> Poll<()> {
        if self.phase != Some(phase) {
            self.phase = Some(phase);
            self.sleep = match phase {
                Phase::Partial(since) => {
                    let end = since + shared.settings.request_limit;
                    Some(Box::pin(time::sleep_until(end)))
                }
                Phase::Idle | Phase::Waiting => None,
            };
        }
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}
