//! What happens to the output of a call: cleaned of secrets, kept whole in a file, told in coalesced events, and
//! its head and tail remembered for the result and for conditions.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::agent::{Emitter, Over};
use crate::event::{Body, OutputStream};
use crate::run::secrets::{Redactor, RedactorStream};

/// The most text of one `tool_output`, in bytes: 16 KiB with the line that says what was cut.
const EVENT_BYTES: usize = 16 * 1024 - 64;

/// How many `tool_output` of one call there may be in a window.
const EVENTS_PER_WINDOW: usize = 4;

/// The window: a second, and a little for what passes between us and the clock that dates the event.
const WINDOW: Duration = Duration::from_millis(1030);

/// The distance of events while output flows: three a second, so that the end can be told without waiting.
const SPACING: Duration = Duration::from_millis(340);

/// How long the first piece of output waits for more to go with it.
const LINGER: Duration = Duration::from_millis(30);

/// Head plus tail of the output in a `tool_result`, in bytes.
const RESULT_BYTES: usize = 8 * 1024;

/// Head plus tail of each text that conditions and later steps see, in bytes.
const HELD_BYTES: usize = 512 * 1024;

/// Half of what is kept of a call's whole output, in bytes.
const FILE_HALF: u64 = 32 * 1024 * 1024;

/// How many pieces may wait for the disk before the output waits.
const PIECES: usize = 16;

/// A text of which only head and tail are kept.
#[derive(Debug)]
struct CutText {
    half: usize,
    head: String,
    head_full: bool,
    tail: String,
    cut: u64,
}

impl CutText {
    /// Keeps `limit` bytes: half of it from the beginning, half from the end.
    fn new(limit: usize) -> Self {
        Self { half: limit / 2, head: String::new(), head_full: false, tail: String::new(), cut: 0 }
    }

    fn push(&mut self, mut text: &str) {
        if !self.head_full {
            let room = self.half - self.head.len();
            let end = text.floor_char_boundary(room);
            self.head.push_str(&text[..end]);
            self.head_full = end < text.len();
            text = &text[end..];
        }
        self.tail.push_str(text);
        // Trimmed at twice its size only, so that many small pieces do not move it each time.
        if self.tail.len() > 2 * self.half {
            self.trim();
        }
    }

    fn trim(&mut self) {
        if self.tail.len() > self.half {
            let from = self.tail.ceil_char_boundary(self.tail.len() - self.half);
            self.tail.drain(..from);
            self.cut += from as u64;
        }
    }

    /// The text, where something was left out with a line that says how much; and how many bytes that is.
    fn finish(mut self) -> (String, u64) {
        self.trim();
        let mut text = self.head;
        if self.cut > 0 {
            text.push_str(&cut_mark(self.cut));
        }
        text.push_str(&self.tail);
        (text, self.cut)
    }
}

fn cut_mark(bytes: u64) -> String {
    format!("\n[... {bytes} bytes cut ...]\n")
}

/// Bytes to text, never splitting a character that comes in two pieces; what is no UTF-8 becomes U+FFFD.
#[derive(Debug, Default)]
struct Decoder {
    held: Vec<u8>,
}

impl Decoder {
    fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let whole = self.held.len() - unfinished(&self.held);
        let text = String::from_utf8_lossy(&self.held[..whole]).into_owned();
        self.held.drain(..whole);
        text
    }

    fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

/// How many bytes at the end are the beginning of a character.
fn unfinished(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        let length = match byte {
            0x80..=0xBF => continue,
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            _ => return 0,
        };
        return if length > back { back } else { 0 };
    }
    0
}

/// When the next event may be sent.
#[derive(Debug, Default)]
struct Pace {
    sent: VecDeque<Instant>,
}

impl Pace {
    /// The earliest moment that the limit allows.
    fn allowed(&self, now: Instant) -> Instant {
        match self.sent.front() {
            Some(first) if self.sent.len() >= EVENTS_PER_WINDOW => now.max(*first + WINDOW),
            _ => now,
        }
    }

    /// The moment at which an event is due while more output may come.
    fn due(&self, waiting_since: Instant) -> Instant {
        let spaced = self.sent.back().map_or(waiting_since, |last| *last + SPACING);
        self.allowed(spaced.max(waiting_since + LINGER))
    }

    fn sent(&mut self, now: Instant) {
        if self.sent.len() >= EVENTS_PER_WINDOW {
            self.sent.pop_front();
        }
        self.sent.push_back(now);
    }
}

/// One of the two streams.
struct Lane {
    redactor: RedactorStream,
    decoder: Decoder,
    held: CutText,
}

impl Lane {
    fn new(redactor: &Redactor) -> Self {
        Self { redactor: redactor.stream(), decoder: Decoder::default(), held: CutText::new(HELD_BYTES) }
    }
}

/// Takes the output of one call.
pub(super) struct Recorder {
    call: String,
    emitter: Emitter,
    stdout: Lane,
    stderr: Lane,
    both: CutText,
    result: CutText,
    /// What was not told yet, oldest first; at most one entry for each stream.
    pending: VecDeque<(OutputStream, CutText)>,
    pending_since: Instant,
    pace: Pace,
    file: FileWriter,
}

/// What became of the output of a call.
#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) stdout: String,
    pub(super) stderr: String,
    /// Both, as they came.
    pub(super) output: String,
    /// Whether `output` is the whole.
    pub(super) whole: bool,
    /// Head and tail for the `tool_result`.
    pub(super) result: String,
    pub(super) result_cut: u64,
    /// Why the whole output could not be kept.
    pub(super) not_kept: Option<io::Error>,
}

impl Recorder {
    /// For the call's output, which goes whole to `path`.
    pub(super) fn new(call: String, emitter: Emitter, redactor: &Redactor, path: PathBuf) -> Self {
        Self {
            call,
            emitter,
            stdout: Lane::new(redactor),
            stderr: Lane::new(redactor),
            both: CutText::new(HELD_BYTES),
            result: CutText::new(RESULT_BYTES),
            pending: VecDeque::new(),
            pending_since: Instant::now(),
            pace: Pace::default(),
            file: FileWriter::start(path),
        }
    }

    /// Takes a piece of output. Waits while the disk cannot take more.
    pub(super) async fn take(&mut self, stream: OutputStream, bytes: &[u8]) {
        let lane = self.lane(stream);
        let clean = lane.redactor.push(bytes);
        let text = lane.decoder.push(&clean);
        self.keep(stream, clean, &text).await;
    }

    fn lane(&mut self, stream: OutputStream) -> &mut Lane {
        match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        }
    }

    async fn keep(&mut self, stream: OutputStream, clean: Vec<u8>, text: &str) {
        if !clean.is_empty() {
            self.file.write(clean).await;
        }
        if text.is_empty() {
            return;
        }
        self.lane(stream).held.push(text);
        self.both.push(text);
        self.result.push(text);
        if self.pending.is_empty() {
            self.pending_since = Instant::now();
        }
        // Order between the streams is kept as long as one event a stream can hold it.
        let place = self.pending.iter_mut().find(|(of, _)| *of == stream);
        if let Some((_, pending)) = place {
            pending.push(text);
        } else {
            let mut pending = CutText::new(EVENT_BYTES);
            pending.push(text);
            self.pending.push_back((stream, pending));
        }
    }

    /// When [`Recorder::tell`] should be called next; `None` while there is nothing to tell.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.pending.is_empty()).then(|| self.pace.due(self.pending_since))
    }

    /// Tells the oldest of what was not told yet.
    pub(super) async fn tell(&mut self) -> Result<(), Over> {
        let Some((stream, pending)) = self.pending.pop_front() else { return Ok(()) };
        let (text, cut_bytes) = pending.finish();
        self.pace.sent(Instant::now());
        let call = self.call.clone();
        self.emitter.emit(Body::ToolOutput { call, stream, text, cut_bytes }).await
    }

    /// Takes what the streams held back, tells the rest and closes the file.
    pub(super) async fn finish(mut self) -> Result<Recorded, Over> {
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            let lane = self.lane(stream);
            let clean = lane.redactor.finish();
            let mut text = lane.decoder.push(&clean);
            text.push_str(&lane.decoder.finish());
            self.keep(stream, clean, &text).await;
        }
        while !self.pending.is_empty() {
            sleep_until(self.pace.allowed(Instant::now())).await;
            self.tell().await?;
        }
        let (output, cut) = self.both.finish();
        let (result, result_cut) = self.result.finish();
        let not_kept = self.file.finish().await.err();
        let (stdout, stderr) = (self.stdout.held.finish().0, self.stderr.held.finish().0);
        Ok(Recorded { stdout, stderr, output, whole: cut == 0, result, result_cut, not_kept })
    }
}

/// Writes the whole output on a thread that may wait for the disk.
struct FileWriter {
    pieces: mpsc::Sender<Vec<u8>>,
    thread: JoinHandle<io::Result<()>>,
}

impl FileWriter {
    fn start(path: PathBuf) -> Self {
        let (pieces, mut waiting) = mpsc::channel::<Vec<u8>>(PIECES);
        let thread = tokio::task::spawn_blocking(move || {
            let mut file = OutputFile::create(&path, FILE_HALF)?;
            while let Some(piece) = waiting.blocking_recv() {
                file.write(&piece)?;
            }
            file.finish()
        });
        Self { pieces, thread }
    }

    async fn write(&self, piece: Vec<u8>) {
        // Fails once the thread met an error, which `finish` tells: a full disk is no reason to fail the work.
        let _ = self.pieces.send(piece).await;
    }

    async fn finish(self) -> io::Result<()> {
        drop(self.pieces);
        self.thread.await.map_err(io::Error::other)?
    }
}

/// A file that keeps the first and the last half of what is written to it.
struct OutputFile {
    half: u64,
    path: PathBuf,
    head: File,
    head_bytes: u64,
    /// A ring of `half` bytes beside the file, begun when the first half is full.
    tail: Option<File>,
    tail_bytes: u64,
}

impl OutputFile {
    fn create(path: &Path, half: u64) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let head = File::create(path)?;
        Ok(Self { half, path: path.into(), head, head_bytes: 0, tail: None, tail_bytes: 0 })
    }

    fn tail_path(&self) -> PathBuf {
        self.path.with_extension("tail")
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let room = usize::try_from(self.half - self.head_bytes).unwrap_or(usize::MAX);
        let (first, mut rest) = bytes.split_at(bytes.len().min(room));
        self.head.write_all(first)?;
        self.head_bytes += first.len() as u64;
        while !rest.is_empty() {
            let path = self.tail_path();
            let tail = match &mut self.tail {
                Some(tail) => tail,
                none => none.insert(File::options().read(true).write(true).create(true).truncate(true).open(path)?),
            };
            let at = self.tail_bytes % self.half;
            tail.seek(SeekFrom::Start(at))?;
            let room = usize::try_from(self.half - at).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(rest.len().min(room));
            tail.write_all(now)?;
            self.tail_bytes += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        let Some(mut tail) = self.tail.take() else { return Ok(()) };
        let cut = self.tail_bytes.saturating_sub(self.half);
        if cut > 0 {
            self.head.write_all(cut_mark(cut).as_bytes())?;
            tail.seek(SeekFrom::Start(self.tail_bytes % self.half))?;
            io::copy(&mut tail, &mut self.head)?;
        }
        tail.seek(SeekFrom::Start(0))?;
        let first = if cut > 0 { self.tail_bytes % self.half } else { self.tail_bytes };
        io::copy(&mut tail.take(first), &mut self.head)?;
        Ok(())
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if self.tail_bytes > 0 {
            let _ = std::fs::remove_file(self.tail_path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_text_head_and_tail_remain_and_the_middle_is_counted() {
        let mut text = CutText::new(8);
        for piece in ["ab", "cdéf", "ghijklmnop", "qr", "stu"] {
            text.push(piece);
        }
        let (text, cut) = text.finish();
        assert_eq!(text, format!("abcd\n[... {cut} bytes cut ...]\nrstu"));
        assert_eq!(cut, "abcdéfghijklmnopqrstu".len() as u64 - 8);
    }

    #[test]
    fn a_text_within_the_limit_stays_whole_whatever_its_characters() {
        let mut text = CutText::new(8);
        text.push("aaa");
        text.push("éé");
        assert_eq!(text.finish(), ("aaaéé".to_owned(), 0));
    }

    #[test]
    fn a_character_in_two_pieces_is_one_character() {
        let mut decoder = Decoder::default();
        let bytes = "a\u{20ac}😀".as_bytes();
        let text: String = bytes.iter().map(|byte| decoder.push(&[*byte])).collect();
        assert_eq!(text + &decoder.finish(), "a\u{20ac}😀");
        assert_eq!(decoder.push(b"\xff\xe2\x82") + &decoder.finish(), "\u{fffd}\u{fffd}");
    }

    #[test]
    fn a_file_over_its_cap_keeps_its_first_and_last_half_and_says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        for (input, kept) in [
            ("", ""),
            ("12345678", "12345678"),
            ("123456789", "1234\n[... 1 bytes cut ...]\n6789"),
            ("abcdefghijklmnopqrstuvw", "abcd\n[... 15 bytes cut ...]\ntuvw"),
        ] {
            for piece in [1, 3, 100] {
                let path = dir.path().join("c1");
                let mut file = OutputFile::create(&path, 4).unwrap();
                for bytes in input.as_bytes().chunks(piece) {
                    file.write(bytes).unwrap();
                }
                file.finish().unwrap();
                assert_eq!(std::fs::read_to_string(&path).unwrap(), kept);
                assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn never_more_than_four_events_fall_into_a_second() {
        let mut pace = Pace::default();
        let mut times = Vec::new();
        for _ in 0..20 {
            let now = pace.allowed(Instant::now());
            pace.sent(now);
            times.push(now);
        }
        assert!(times.windows(5).all(|five| five[4] - five[0] > Duration::from_secs(1)));
    }
}
