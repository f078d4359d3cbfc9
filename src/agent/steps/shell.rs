//! A step that runs a shell command.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::output::Recorder;
use super::{Call, Done};
use crate::agent::{Emitter, Over};
use crate::event::{Body, OutputStream, State, Status};
use crate::run::process::{CommandSpec, Exit, Left, Processes, SpawnError, Stage};

/// After the command's end its pipes may be held by others; they are read until they are quiet for so long ...
const QUIET: Duration = Duration::from_millis(200);

/// ... and no longer than this.
const DRAIN: Duration = Duration::from_secs(1);

/// What is read at once, in bytes.
const READ_BYTES: usize = 32 * 1024;

/// The most that a pipe holds, in bytes, where a command has not enlarged it beyond what users may.
const PIPE_BYTES: usize = 1024 * 1024;

/// How many stages of a stop there are.
const STAGES: usize = 3;

/// How the reason begins that only says with which code or signal the command ended.
pub(super) const ENDED_WITH: &str = "ended with";

/// Runs the command to its end, or until its time is over and it was ended.
pub(super) async fn run(
    call: &Call<'_>,
    spec: CommandSpec,
    processes: &Processes,
    emitter: &Emitter,
    recorder: &mut Recorder,
) -> Result<Done, Over> {
    let mut running = match processes.spawn(spec).await {
        Ok(running) => running,
        Err(SpawnError::Stopping) => return Ok(Done::failed("stopped")),
        Err(error) => return Ok(Done::failed(format!("could not be started: {error}"))),
    };
    let (mut stdout, mut stderr) = (running.stdout.take(), running.stderr.take());
    // The step's time is over; then, what its stop could not end. That goes on by itself: an event or a piece of output
    // that must wait for the disk holds up no stage.
    let (begun, mut is_late) = watch::channel(false);
    let (stages, mut reached) = mpsc::channel(STAGES);
    let mut ending = JoinSet::new();
    if let Some(deadline) = call.deadline {
        ending.spawn(running.stop_at(deadline, begun, stages));
    }
    let mut late = false;
    let mut left: Option<Vec<Left>> = None;
    let (mut wait, mut gone) = (std::pin::pin!(running.wait()), std::pin::pin!(running.gone()));
    let (mut exit, mut is_gone) = (None, false);
    let (mut out, mut err) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
    // The last piece of output, and after the end of the command the end of reading.
    let mut last = Instant::now();
    let mut drained: Option<Instant> = None;
    let mut unseen: Option<Instant> = None;
    loop {
        let due = recorder.due();
        // Its time may have passed while the log made us wait.
        late = late || *is_late.borrow();
        // While it is stopped the whole tree has its time, and may say what it does with it: its shell may end long before.
        let stopped = is_gone || left.is_some() || !(late || processes.is_stopping());
        let over = exit.is_some() && stopped;
        if over && stdout.is_none() && stderr.is_none() {
            break;
        }
        tokio::select! {
            read = read(&mut stdout, &mut out) => {
                last = Instant::now();
                take(recorder, OutputStream::Stdout, &mut stdout, &out, read).await;
            }
            read = read(&mut stderr, &mut err) => {
                last = Instant::now();
                take(recorder, OutputStream::Stderr, &mut stderr, &err, read).await;
            }
            ended = &mut wait, if exit.is_none() => {
                exit = Some(ended);
                last = Instant::now();
                drained = Some(last + DRAIN);
            }
            () = at(due) => recorder.tell().await?,
            Ok(()) = is_late.changed(), if !late => late = true,
            Some(stage) = reached.recv() => tell_stage(call, stage, emitter).await?,
            () = &mut gone, if !is_gone => is_gone = true,
            Some(Ok(Some(remaining))) = ending.join_next() => {
                // Where nobody is left the exit is there or on its way, unless its supervisor does not see all.
                if !left.insert(remaining).is_empty() {
                    break;
                }
                unseen = Some(Instant::now() + DRAIN);
            }
            () = at(unseen), if exit.is_none() => break,
            () = processes.given_up(), if !over => break,
            () = at(drained.map(|end| end.min(last + QUIET))), if over => break,
        }
    }
    // However late we are (the log may have made us wait): what the command had written is in the pipes still, and a
    // stage may have been reached that was not told yet.
    take_rest(recorder, OutputStream::Stdout, stdout, &mut out).await;
    take_rest(recorder, OutputStream::Stderr, stderr, &mut err).await;
    while let Ok(stage) = reached.try_recv() {
        tell_stage(call, stage, emitter).await?;
    }
    if let Some(Ok(Some(remaining))) = ending.try_join_next() {
        left = Some(remaining);
    }
    let is_left = left.as_ref().is_some_and(|left| !left.is_empty());
    let reason = match exit {
        Some(exit) if exit.is_success() && !is_left => None,
        _ if processes.is_stopping() => Some("stopped".to_owned()),
        _ if late => Some(too_long(call, &left.unwrap_or_default())),
        Some(exit) => Some(format!("{ENDED_WITH} {}", exit.words())),
        None => Some("could not be followed to its end".to_owned()),
    };
    let exit = exit.and_then(Exit::shell_code);
    Ok(Done { ok: reason.is_none(), exit, status: None, reason })
}

async fn tell_stage(call: &Call<'_>, stage: Stage, emitter: &Emitter) -> Result<(), Over> {
    let words = format!("Step {} takes too long: {} sent", call.step, stage.as_str());
    emitter.emit(Body::Status(Status::new(State::Progress, words))).await
}

fn too_long(call: &Call<'_>, left: &[Left]) -> String {
    let limit = call.timeout.unwrap_or_default();
    let mut words = format!("took longer than its timeout of {limit:?}");
    for Left { pid, name, state } in left {
        words.push_str(&format!("; {name} ({pid}) could not be ended (state {state})"));
    }
    words
}

/// Reads from a stream that may have ended; one that has never wakes anybody.
async fn read(from: &mut Option<impl AsyncRead + Unpin>, into: &mut [u8]) -> std::io::Result<usize> {
    match from {
        Some(from) => from.read(into).await,
        None => std::future::pending().await,
    }
}

/// Takes what can be read without waiting.
async fn take_rest(
    recorder: &mut Recorder,
    stream: OutputStream,
    mut from: Option<impl AsyncRead + Unpin>,
    into: &mut [u8],
) {
    let mut rest = PIPE_BYTES;
    while rest > 0 {
        match tokio::task::unconstrained(read(&mut from, into)).now_or_never() {
            Some(Ok(n)) if n > 0 => {
                recorder.take(stream, &into[..n]).await;
                rest = rest.saturating_sub(n);
            }
            _ => return,
        }
    }
}

async fn take<S>(
    recorder: &mut Recorder,
    stream: OutputStream,
    from: &mut Option<S>,
    bytes: &[u8],
    read: std::io::Result<usize>,
) {
    match read {
        Ok(n) if n > 0 => recorder.take(stream, &bytes[..n]).await,
        _ => *from = None,
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
