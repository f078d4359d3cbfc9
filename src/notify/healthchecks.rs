//! Signs of life, for a service in the manner of healthchecks.io that raises the alarm when they are missing.

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};

use super::notice::Notice;
use super::sending::{Line, Parcel, Trouble, Values, parse};
use crate::record::RunState;
use crate::task::telling::Occasion;

pub(super) async fn send(
    line: &Line<'_>,
    values: &Values,
    url: &str,
    create: bool,
    parcel: &Parcel<'_>,
) -> Result<(), Trouble> {
    for (_, notice) in &parcel.members {
        let check = notice.check.as_deref().ok_or_else(|| Trouble::Never("the task names no check".to_owned()))?;
        let mut url = parse(url)?;
        {
            let mut path = url.path_segments_mut().map_err(|()| "the url cannot have a path".to_owned())?;
            path.pop_if_empty().extend(values.of("key").map(str::trim)).push(check);
            if let Some(signal) = signal(notice) {
                path.push(&signal);
            }
        }
        if let Some(run) = notice.run {
            // Pairs the start with its end.
            url.query_pairs_mut().append_pair("rid", &run.to_string());
        }
        if create {
            url.query_pairs_mut().append_pair("create", "1");
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        line.call(&url, headers, notice.text.clone()).await?;
    }
    Ok(())
}

/// What is put behind the address of the check; nothing for a success.
fn signal(notice: &Notice) -> Option<String> {
    if notice.event == Occasion::Test {
        return Some("log".to_owned());
    }
    match (notice.state, notice.exit) {
        (Some(RunState::Succeeded), _) => None,
        (Some(RunState::Running | RunState::Waiting | RunState::Queued), _) => Some("start".to_owned()),
        (_, Some(exit @ 1..=255)) => Some(exit.to_string()),
        _ => Some("fail".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    #[test]
    fn a_run_is_told_of_by_its_exit_code_where_it_has_one() {
        let told = |state, exit| {
            let mut notice = Notice::new(Occasion::Ping, Timestamp::UNIX_EPOCH, "");
            (notice.state, notice.exit) = (Some(state), exit);
            signal(&notice)
        };
        assert_eq!(told(RunState::Running, None).as_deref(), Some("start"));
        assert_eq!(told(RunState::Succeeded, Some(0)), None);
        assert_eq!(told(RunState::Failed, Some(7)).as_deref(), Some("7"));
        assert_eq!(told(RunState::Failed, Some(-1)).as_deref(), Some("fail"));
        assert_eq!(told(RunState::TimedOut, None).as_deref(), Some("fail"));
    }
}
