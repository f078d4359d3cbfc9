//! What is about to be written on one socket: frames in their order, many of them in one call of the system.
//!
//! The events of a frame are the log's own text, shared with the ring and with every other watcher: what waits here
//! is handles and a few bytes around them. When nothing waits, nothing is held.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::frame;
use crate::stream::segment::Slice;

/// The most bytes in front of a frame's events: the WebSocket's header (10), the names of the members (49), a sub and
/// two numbers of events (10 and 2 × 20), with something to spare.
const MOST_BEFORE: usize = 118;
/// How many pieces of memory one call of the system is given.
const PIECES: usize = 64;

/// A frame of the server.
#[derive(Clone, Debug)]
pub enum Frame {
    /// As it stands.
    Text(Utf8Bytes),
    /// Events of a subscription, in the frame that is around them.
    Events {
        /// The subscription.
        sub: u32,
        /// The events.
        slice: Slice,
    },
}

impl From<Utf8Bytes> for Frame {
    fn from(text: Utf8Bytes) -> Self {
        Self::Text(text)
    }
}

#[derive(Debug)]
enum Body {
    Text(Utf8Bytes),
    Events(Slice),
    /// Whole frames as the WebSocket's library made them: pong and close.
    Made(Box<[u8]>),
}

#[derive(Debug)]
struct Piece {
    before: [u8; MOST_BEFORE],
    before_length: u8,
    body: Body,
    behind: &'static str,
}

impl Piece {
    fn parts(&self) -> [&[u8]; 3] {
        let body = match &self.body {
            Body::Text(text) => text.as_bytes(),
            Body::Events(slice) => slice.items().as_bytes(),
            Body::Made(bytes) => bytes,
        };
        [&self.before[..usize::from(self.before_length)], body, self.behind.as_bytes()]
    }

    fn length(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }
}

/// The frames that are about to be written.
#[derive(Debug, Default)]
pub struct Outgoing {
    pieces: VecDeque<Piece>,
    /// How many bytes of the first piece are written already.
    done: usize,
    /// How many bytes wait.
    bytes: usize,
}

impl Outgoing {
    /// How many bytes wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Adds a frame; gives how many bytes it takes.
    pub fn push(&mut self, frame: Frame) -> usize {
        let mut names = [0; MOST_BEFORE];
        let (names_length, body, behind) = match frame {
            Frame::Text(text) => (0, Body::Text(text), ""),
            Frame::Events { sub, slice } => {
                let mut cursor = io::Cursor::new(&mut names[..]);
                let behind = frame::around_events(&mut cursor, sub, slice.first, slice.last);
                (cursor.position() as usize, Body::Events(slice), behind)
            }
        };
        let mut piece = Piece { before: [0; MOST_BEFORE], before_length: 0, body, behind };
        let payload = names_length + piece.length();
        let mut cursor = io::Cursor::new(&mut piece.before[..]);
        // A text message in one frame, not masked, as a server sends it (RFC 6455, 5.2).
        let _ = match payload {
            0..=125 => cursor.write_all(&[0x81, payload as u8]),
            126..=0xffff => cursor.write_all(&[0x81, 126, (payload >> 8) as u8, payload as u8]),
            _ => cursor.write_all(&[0x81, 127]).and_then(|()| cursor.write_all(&(payload as u64).to_be_bytes())),
        };
        let _ = cursor.write_all(&names[..names_length]);
        piece.before_length = cursor.position() as u8;
        self.add(piece)
    }

    /// Adds frames that are made already.
    pub fn push_made(&mut self, bytes: &[u8]) -> usize {
        self.add(Piece { before: [0; MOST_BEFORE], before_length: 0, body: Body::Made(bytes.into()), behind: "" })
    }

    fn add(&mut self, piece: Piece) -> usize {
        let length = piece.length();
        self.bytes += length;
        self.pieces.push_back(piece);
        length
    }

    /// Writes until nothing waits or the stream takes no more. Safe to call again at any point.
    ///
    /// # Errors
    /// When the stream is gone.
    pub fn poll_write(&mut self, mut to: Pin<&mut impl AsyncWrite>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); PIECES];
            let count = self.fill(&mut slices);
            let written = ready!(to.as_mut().poll_write_vectored(context, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>; PIECES]) -> usize {
        let (mut count, mut skip) = (0, self.done);
        for part in self.pieces.iter().flat_map(Piece::parts) {
            if skip >= part.len() {
                skip -= part.len();
                continue;
            }
            slices[count] = IoSlice::new(&part[skip..]);
            skip = 0;
            count += 1;
            if count == PIECES {
                break;
            }
        }
        count
    }

    fn advance(&mut self, written: usize) {
        self.bytes -= written;
        self.done += written;
        while let Some(length) = self.pieces.front().map(Piece::length).filter(|length| *length <= self.done) {
            self.done -= length;
            self.pieces.pop_front();
        }
    }

    /// Gives back what was held for frames, now that none waits.
    pub fn rest(&mut self) {
        if self.pieces.is_empty() && self.pieces.capacity() > 0 {
            self.pieces = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket};

    use super::*;
    use crate::event::Seq;
    use crate::stream::segment::Builder;

    /// Takes as much at a time as it is told to, and now and then nothing.
    struct Stingy {
        taken: Vec<u8>,
        portions: Vec<usize>,
        calls: usize,
    }

    impl AsyncWrite for Stingy {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let portion = self.portions[self.calls % self.portions.len()].min(bytes.len());
            self.calls += 1;
            if portion == 0 {
                return Poll::Pending;
            }
            self.taken.extend_from_slice(&bytes[..portion]);
            Poll::Ready(Ok(portion))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            self.poll_write(context, &all)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn slice(first: u64, sizes: &[usize]) -> Slice {
        let mut builder = Builder::new(Seq(first));
        for size in sizes {
            builder.push(|items| items.extend(std::iter::repeat_n('x', *size)));
        }
        Arc::new(builder.finish().unwrap()).slice(Seq(first), usize::MAX).unwrap()
    }

    /// What a client reads of these bytes.
    fn read(bytes: Vec<u8>) -> Vec<String> {
        let end = bytes.len() as u64;
        let mut socket = WebSocket::from_raw_socket(io::Cursor::new(bytes), Role::Client, None);
        let mut texts = Vec::new();
        while socket.get_ref().position() < end || texts.is_empty() {
            match socket.read().unwrap() {
                Message::Text(text) => texts.push(text.to_string()),
                other => panic!("{other:?}"),
            }
        }
        // What the library has read ahead.
        while let Ok(Message::Text(text)) = socket.read() {
            texts.push(text.to_string());
        }
        texts
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn frames_arrive_whole_and_in_order_however_little_is_taken_at_a_time(
            frames in prop::collection::vec((1_u64..(1 << 53), prop::collection::vec(1_usize..40_000, 0..4)), 1..60),
            mut portions in prop::collection::vec(0_usize..70_000, 1..8),
        ) {
            portions.push(1000);
            let (mut outgoing, mut wanted, mut bytes) = (Outgoing::default(), Vec::new(), 0);
            for (first, sizes) in &frames {
                let frame = if sizes.is_empty() {
                    wanted.push(format!(r#"{{"text":{first}}}"#));
                    Frame::Text(wanted.last().unwrap().as_str().into())
                } else {
                    let slice = slice(*first, sizes);
                    let mut text = Vec::new();
                    let behind = frame::around_events(&mut text, 7, slice.first, slice.last);
                    wanted.push(format!("{}{}{behind}", String::from_utf8(text).unwrap(), slice.items()));
                    Frame::Events { sub: 7, slice }
                };
                bytes += outgoing.push(frame);
            }
            prop_assert_eq!(outgoing.bytes(), bytes);
            let mut stingy = Stingy { taken: Vec::new(), portions, calls: 0 };
            let mut context = Context::from_waker(std::task::Waker::noop());
            while outgoing.poll_write(Pin::new(&mut stingy), &mut context).is_pending() {
                prop_assert_eq!(outgoing.bytes() + stingy.taken.len(), bytes);
            }
            prop_assert!(outgoing.is_empty() && outgoing.bytes() == 0);
            prop_assert_eq!(read(stingy.taken), wanted);
        }
    }

    #[test]
    fn the_longest_beginning_of_a_frame_has_room() {
        let mut outgoing = Outgoing::default();
        let first = (1 << 53) - 1;
        let slice = slice(first, &[70_000, 1]);
        let mut whole = Vec::new();
        frame::around_events(&mut whole, u32::MAX, Seq(first), Seq(first + 1));
        outgoing.push(Frame::Events { sub: u32::MAX, slice });
        assert_eq!(usize::from(outgoing.pieces[0].before_length), whole.len() + 10);
    }
}
