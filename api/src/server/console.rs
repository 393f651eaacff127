//! The socket after a change of protocol: what the guest prints goes out, what the client types goes in.

use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time;

use super::Shared;
use super::link::{Link, Switched};
use crate::events::{Piece, Reader};
use crate::frames;
use crate::handler::{ConsoleInput, ConsoleStream};

/// Bytes sent at once.
const OUTPUT_CHUNK: usize = 16 << 10;
/// Bytes read at once.
const INPUT_CHUNK: usize = 1024;
/// How long the guest is given to take input for which there was no room.
const INPUT_PAUSE: Duration = Duration::from_millis(10);

/// Serves an attached console until the client is gone, the guest's output ends or the server stops. `early`
/// is what the client has sent before it knew that it may.
pub(super) async fn run(link: &Link, shared: &Shared, switched: Switched, early: &[u8]) {
    let Switched {
        stream: ConsoleStream { mut output, input },
        in_frames,
    } = switched;
    let mut outward = pin!(print(link, shared, &mut output, in_frames));
    let mut inward = pin!(listen(link, input, early));
    let mut gone = pin!(link.until_gone());
    poll_fn(|cx| {
        let is_over = outward.as_mut().poll(cx).is_ready()
            || inward.as_mut().poll(cx).is_ready()
            || gone.as_mut().poll(cx).is_ready();
        if is_over {
            return Poll::Ready(());
        }
        Poll::Pending
    })
    .await;
}

/// What the guest prints. A client that is too slow for it misses some, as on any terminal that cannot keep up.
async fn print(
    link: &Link,
    shared: &Shared,
    output: &mut Reader,
    in_frames: bool,
) -> io::Result<()> {
    // Whatever is left of the answer.
    link.write_all(&[]).await?;
    let mut stop = pin!(shared.until_stop());
    let mut next = |cx: &mut Context<'_>| match output.poll_next(cx, OUTPUT_CHUNK) {
        Poll::Pending => stop.as_mut().poll(cx).map(|()| None),
        piece => piece,
    };
    while let Some(piece) = poll_fn(&mut next).await {
        match piece {
            piece if in_frames => link.write_all(&frames::encode(&piece)).await?,
            Piece::Data(bytes) => link.write_all(&bytes).await?,
            Piece::Lost(_) => {}
        }
    }
    Ok(())
}

/// What the client types. One that types no more may still watch.
async fn listen(link: &Link, mut input: ConsoleInput, early: &[u8]) {
    give(&mut input, early).await;
    let mut buffer = [0; INPUT_CHUNK];
    loop {
        match link.read(&mut buffer).await {
            Ok(0) => return pending().await,
            Ok(count) => give(&mut input, &buffer[..count]).await,
            Err(_) => return,
        }
    }
}

/// Gives all of `bytes` to the guest, in its own time.
async fn give(input: &mut ConsoleInput, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let count = input(bytes).min(bytes.len());
        bytes = &bytes[count..];
        if count == 0 {
            time::sleep(INPUT_PAUSE).await;
        }
    }
}
