//! `POST /api/v1/runs/{run}/events`: what a program elsewhere says of its run, line by line, over one request that
//! may last as long as the run.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::error::{ApiError, run_id};
use super::{Api, One};
use crate::event::{self, Status};

/// A line as it is read: everything borrowed.
#[derive(Deserialize)]
struct Line<'a> {
    n: u64,
    #[serde(borrow)]
    kind: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// Takes what a program elsewhere says of its run.
///
/// # Errors
/// 404, 409 `run_over`, 400 `bad_line`.
pub async fn append(State(api): State<Api>, Path(id): One, mut body: Body) -> Result<Json<Value>, ApiError> {
    let run = run_id(&id)?;
    let Some(there) = api.runs.elsewhere(run) else {
        let run = api.runs.find(run).await?;
        let (code, detail) = match run.state.is_ended() {
            true => ("run_over", "the run is over"),
            false => ("not_external", "this run is carried out by the server itself"),
        };
        return Err(ApiError::new(StatusCode::CONFLICT, code, detail));
    };
    let (mut accepted, mut last_n, mut last_seq) = (0_u64, 0_u64, 0_u64);
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(chunk) = frame.map(|frame| frame.into_data().unwrap_or_default()) else { break };
        rest.extend_from_slice(&chunk);
        let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else { continue };
        let lines: Bytes = rest.split_to(end + 1).freeze();
        for text in lines.split(|byte| *byte == b'\n').filter(|text| !text.trim_ascii().is_empty()) {
            let bad = |why: String| ApiError::new(StatusCode::BAD_REQUEST, "bad_line", why).with("accepted", accepted);
            let line: Line<'_> = serde_json::from_slice(text).map_err(|error| bad(error.to_string()))?;
            if line.n <= last_n {
                continue;
            }
            let said = body_of(&line).map_err(|error| bad(error.to_string()))?;
            let gone = |refused: crate::stream::topic::Refused| {
                ApiError::new(StatusCode::CONFLICT, "run_over", refused.to_string())
            };
            if said.state().is_some_and(event::State::is_terminal) {
                last_seq = api.publisher.publish(there.topic(), Some(run), &said).await.map_err(gone)?.0;
                api.runs.note_over(run);
            } else {
                api.publisher.offer(there.topic(), Some(run), &said).await.map_err(gone)?;
            }
            (accepted, last_n) = (accepted + 1, line.n);
        }
    }
    Ok(Json(json!({ "accepted": accepted, "last_n": last_n, "last_seq": last_seq })))
}

fn body_of(line: &Line<'_>) -> serde_json::Result<event::Body> {
    #[derive(Deserialize)]
    struct Use {
        call: String,
        tool: String,
        input: Value,
    }
    #[derive(Deserialize)]
    struct Done {
        call: String,
        tool: String,
        ok: bool,
        #[serde(default)]
        output: String,
    }
    let data = line.data.get();
    Ok(match &*line.kind {
        "status" => event::Body::Status(serde_json::from_str::<Status>(data)?),
        "tool_use" => {
            let Use { call, tool, input } = serde_json::from_str(data)?;
            event::Body::ToolUse { call, tool, input }
        }
        "tool_result" => {
            let Done { call, tool, ok, output } = serde_json::from_str(data)?;
            event::Body::ToolResult { call, tool, ok, output, cut_bytes: 0, exit: None, duration_ms: 0 }
        }
        kind => event::Body::Other { kind: kind.to_owned(), raw: line.data.to_owned() },
    })
}
