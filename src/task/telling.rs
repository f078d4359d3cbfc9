//! What people may be told of a task by other ways than the page, and what a task says about that.
//!
//! Knows nothing of channels but their names.

use serde::{Deserialize, Serialize, Serializer};

/// What somebody may want to be told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Occasion {
    /// A run failed, took too long or was interrupted, and is not tried again.
    Failed,
    /// A run worked again, after failures that were told.
    Recovered,
    /// A run found something that a person should look at.
    Attention,
    /// Due times passed without a run.
    Missed,
    /// A run started late.
    Late,
    /// A run took much longer than usual.
    Slow,
    /// A run waits for an approval.
    Waiting,
    /// Somebody wanted to see whether it arrives.
    Test,
    /// A sign of life for whoever watches from outside: a run started or ended.
    Ping,
}

impl Occasion {
    /// Those that can be chosen.
    pub const CHOICES: [Self; 7] =
        [Self::Failed, Self::Recovered, Self::Attention, Self::Missed, Self::Late, Self::Slow, Self::Waiting];

    /// Those of a channel or task that chooses none.
    pub const DEFAULTS: [Self; 5] = [Self::Failed, Self::Recovered, Self::Attention, Self::Missed, Self::Waiting];

    /// The name in files and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Recovered => "recovered",
            Self::Attention => "attention",
            Self::Missed => "missed",
            Self::Late => "late",
            Self::Slow => "slow",
            Self::Waiting => "waiting",
            Self::Test => "test",
            Self::Ping => "ping",
        }
    }

    /// The one of that name which can be chosen.
    pub fn chosen(name: &str) -> Option<Self> {
        Self::CHOICES.into_iter().find(|occasion| occasion.as_str() == name)
    }
}

/// What a task says about being told of: `[notify]` in its file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Telling {
    /// Whether anybody is told anything of it.
    pub enabled: bool,
    /// The channels that are told; all that are meant for every task without.
    pub channels: Option<Vec<String>>,
    /// What is told, whatever a channel says; what the channel says without.
    pub on: Option<Vec<Occasion>>,
    /// Its name at a service that expects signs of life.
    pub check: Option<String>,
}

impl Default for Telling {
    fn default() -> Self {
        Self { enabled: true, channels: None, on: None, check: None }
    }
}

impl Serialize for Telling {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Written<'t> {
            #[serde(skip_serializing_if = "Option::is_none")]
            enabled: Option<bool>,
            #[serde(skip_serializing_if = "Option::is_none")]
            channels: Option<&'t [String]>,
            #[serde(skip_serializing_if = "Option::is_none")]
            on: Option<&'t [Occasion]>,
            #[serde(skip_serializing_if = "Option::is_none")]
            check: Option<&'t str>,
        }
        Written {
            enabled: (!self.enabled).then_some(false),
            channels: self.channels.as_deref(),
            on: self.on.as_deref(),
            check: self.check.as_deref(),
        }
        .serialize(serializer)
    }
}
