//! Arguments, configuration, telemetry, [`sidegate::app`].

fn main() {}
