// The task files that tests and pictures have in common.

/** A task of one step; `more` are the tables that stand before that. */
export const oneStep = (title, more = '', run = 'true') =>
  `title = "${title}"\nagent = "steps"\n${more}\n[[steps]]\nname = "one"\nrun = "${run}"\n`;

/** Is due every second, and fares as `run` does; what waited longer than `window` is missed. */
export const everySecond = (title, window, run) =>
  oneStep(title, `\n[schedule]\nevery = "1s"\n\n[policy]\ncatchup_window = "${window}"\n`, run);

/** Finds the same each time. */
export const FINDS = `title = "Certificates"
description = "Says which certificates of this machine end soon."
agent = "steps"

[schedule]
every = "12h"

[params]
left = { default = "6 days" }

[[steps]]
name = "dates"
thought = "Which certificates end within a month?"
run = "echo \\"git.example.org ends in $REJOIN_PARAM_LEFT\\""
attention = 'output.contains("6 days")'
summary = "The certificate of git.example.org ends in 6 days"
`;
