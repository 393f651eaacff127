//! What is answered: at once, or line by line for as long as the client listens.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::Shared;
use super::link::Link;
use crate::events::{Piece, Reader};

/// Bytes of lines that are sent together, if there are so many.
const MAX_CHUNK: usize = 16 << 10;

/// The body of an answer.
pub(super) enum Body {
    /// All of it. None when it is out.
    Whole(Option<Bytes>),
    /// A stream.
    Events(Pin<Box<Events>>),
}

impl Body {
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::Whole((!bytes.is_empty()).then_some(bytes))
    }

    pub(super) fn events(events: Events) -> Self {
        Self::Events(Box::pin(events))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take()),
            Self::Events(events) => events.poll_next(cx),
        };
        data.map(|data| data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Events(_) => SizeHint::default(),
        }
    }
}

/// A stream of lines. It ends with the stream of events, with its client, or with the server, but
/// then after what has been published.
pub(super) struct Events {
    reader: Reader,
    gone: Pin<Box<dyn Future<Output = ()>>>,
    stop: Pin<Box<dyn Future<Output = ()>>>,
}

impl Events {
    pub(super) fn new(reader: Reader, link: Rc<Link>, shared: Rc<Shared>) -> Self {
        Self {
            reader,
            gone: Box::pin(async move { link.until_gone().await }),
            stop: Box::pin(async move { shared.until_stop().await }),
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self.reader.poll_next(cx, MAX_CHUNK) {
            Poll::Ready(Some(Piece::Data(lines))) => Poll::Ready(Some(lines.into())),
            Poll::Ready(Some(Piece::Lost(lines))) => {
                let line = format!("{{\"event\":\"lost\",\"lines\":{lines}}}\n");
                Poll::Ready(Some(line.into()))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                let is_over = self.stop.as_mut().poll(cx).is_ready()
                    || self.gone.as_mut().poll(cx).is_ready();
                if is_over {
                    return Poll::Ready(None);
                }
                Poll::Pending
            }
        }
    }
}
