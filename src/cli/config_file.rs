//! One TOML file beside flags and environment: its keys are the names of the flags.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};
use toml::{Table, Value};

use super::flags::Cli;
use super::toml_file::{FileError, read};

/// Flags that make no sense in a file.
const NOT_IN_A_FILE: [&str; 7] =
    ["config", "print_config", "help", "version", "prompts", "limit", "json"];

/// Why flags, environment and file make no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A flag, a variable or a value of the file; asking for help counts.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Reads the arguments, with the environment and the file behind them. Also gives the configuration as a
/// TOML file that says where each value comes from.
///
/// # Errors
/// [`ConfigError`] naming the flag, the variable, or the file and its key.
pub fn parse(mut arguments: Vec<OsString>) -> Result<(Cli, String), ConfigError> {
    let program = Cli::command();
    let matches = program.clone().try_get_matches_from(&arguments)?;
    let (command, given) = of_command(&program, &matches);
    let mut from_file = Vec::new();
    if let Some(path) = given.get_one::<PathBuf>("config") {
        let invalid = |reason| FileError::invalid(path, reason);
        let table: Table = read(path)?;
        for (name, value) in &table {
            let argument = setting(command, name)
                .ok_or_else(|| invalid(format!("`{name}` is no setting; see `pleach --help`")))?;
            let id = argument.get_id().as_str();
            if matches!(
                given.value_source(id),
                Some(ValueSource::CommandLine | ValueSource::EnvVariable)
            ) {
                continue;
            }
            let flags = flags(argument, value)
                .ok_or_else(|| invalid(format!("`{name}` cannot be {value}")))?;
            arguments.extend(flags.into_iter().map(OsString::from));
            from_file.push(id.to_owned());
        }
    }
    let matches = program.clone().try_get_matches_from(&arguments)?;
    let (command, given) = of_command(&program, &matches);
    let shown = show(command, given, &from_file);
    Ok((Cli::from_arg_matches(&matches)?, shown))
}

/// The named command and its arguments, or the program's own.
fn of_command<'a>(program: &'a Command, matches: &'a ArgMatches) -> (&'a Command, &'a ArgMatches) {
    let named = matches.subcommand();
    let named = named.and_then(|(name, given)| Some((program.find_subcommand(name)?, given)));
    named.unwrap_or((program, matches))
}

fn setting<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let name = name.replace('-', "_");
    command.get_arguments().find(|a| a.get_id() == &name && !NOT_IN_A_FILE.contains(&&*name))
}

/// A value of the file as flags; `None` where it has no such form.
fn flags(argument: &Arg, value: &Value) -> Option<Vec<String>> {
    let long = argument.get_long()?;
    if let ArgAction::SetTrue = argument.get_action() {
        return value.as_bool().map(|on| if on { vec![format!("--{long}")] } else { vec![] });
    }
    let one = |value: &Value| match value {
        Value::String(text) => Some(format!("--{long}={text}")),
        Value::Integer(_) | Value::Float(_) => Some(format!("--{long}={value}")),
        _ => None,
    };
    match (value, argument.get_action()) {
        (Value::Array(values), ArgAction::Append) => values.iter().map(one).collect(),
        _ => one(value).map(|flag| vec![flag]),
    }
}

fn show(command: &Command, matches: &ArgMatches, from_file: &[String]) -> String {
    let mut text = String::new();
    for argument in command.get_arguments() {
        let id = argument.get_id().as_str();
        let Some(long) = argument.get_long().filter(|_| !NOT_IN_A_FILE.contains(&id)) else {
            continue;
        };
        let source = match matches.value_source(id) {
            _ if from_file.iter().any(|name| name == id) => "file",
            Some(ValueSource::CommandLine) => "flag",
            Some(ValueSource::EnvVariable) => "environment",
            _ => "default",
        };
        let values: Vec<String> = matches.get_raw(id).map_or_else(Vec::new, |values| {
            values.map(|value| value.to_string_lossy().into_owned()).collect()
        });
        let literal = |text: &String| match (text.parse::<i64>(), argument.get_action()) {
            (Ok(number), _) => number.to_string(),
            (_, ArgAction::SetTrue) => matches.get_flag(id).to_string(),
            _ => Value::String(text.clone()).to_string(),
        };
        let _ = match &values[..] {
            [] => writeln!(text, "# {long} = (chosen at start)"),
            _ if argument.is_hide_env_values_set() => {
                writeln!(text, "# {long} = (secret) # {source}")
            }
            _ if matches!(argument.get_action(), ArgAction::Append) => {
                let list: Vec<String> = values.iter().map(literal).collect();
                writeln!(text, "{long} = [{}] # {source}", list.join(", "))
            }
            [value, ..] => writeln!(text, "{long} = {} # {source}", literal(value)),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::flags::{Args, Command as Subcommand};

    fn parsed(file: &str, flags: &[&str]) -> Result<(Args, String), ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pleach.toml");
        std::fs::write(&path, file).unwrap();
        let own = ["pleach".into(), "--config".into(), path.into_os_string()];
        parse(own.into_iter().chain(flags.iter().map(OsString::from)).collect())
            .map(|(cli, shown)| (cli.args, shown))
    }

    #[test]
    fn check_takes_the_settings_of_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pleach.toml");
        std::fs::write(&path, "max-num-seqs = 3\nthreads = 7\n").unwrap();
        let given = ["pleach", "check", "--json", "--threads", "2", "--config"];
        let arguments = given.into_iter().map(OsString::from).chain([path.into_os_string()]);
        let (cli, shown) = parse(arguments.collect()).unwrap();
        let Some(Subcommand::Check(check)) = cli.command else { panic!("no command") };
        assert_eq!((check.server.max_num_seqs, check.server.threads), (3, Some(2)));
        assert!(check.json && check.limit == 12 && shown.contains("max-num-seqs = 3 # file"));
        assert!(parse(["pleach", "--port", "1", "check"].map(OsString::from).to_vec()).is_err());
    }

    #[test]
    fn a_file_stands_behind_flags_and_reads_back_what_was_shown() {
        let file = "port = 99\nmax-queue = 7\nno-speculation = true\nhost = \"::1\"\n\
                    cors-origin = [\"http://a\", \"http://b\"]\n";
        let (args, shown) = parsed(file, &["--port", "11"]).unwrap();
        assert_eq!((args.port, args.max_queue, args.no_speculation), (11, 7, true));
        assert_eq!(args.cors_origin, ["http://a", "http://b"]);
        assert!(shown.contains("port = 11 # flag") && shown.contains("max-queue = 7 # file"));
        assert!(shown.contains("client-timeout = 30 # default"), "{shown}");
        let (again, _) = parsed(&shown, &[]).unwrap();
        assert_eq!((again.port, again.host, again.no_speculation), (11, args.host, true));
        assert_eq!(again.cors_origin, args.cors_origin);
    }

    #[test]
    fn what_is_no_setting_is_an_error() {
        for (file, expected) in [
            ("prot = 1", "`prot` is no setting"),
            ("config = \"x\"", "`config` is no setting"),
            ("port = \"x\"", "--port"),
            ("port = 99999", "--port"),
            ("port = [1]", "`port` cannot be [1]"),
            ("no-speculation = 1", "`no-speculation` cannot be 1"),
            ("host = \"::1\"\nport = ", "line 2"),
        ] {
            let error = parsed(file, &[]).unwrap_err().to_string();
            assert!(error.contains(expected), "{file}: {error}");
        }
    }

    #[test]
    fn keys_are_not_shown() {
        let (args, shown) = parsed("api-key = \"sesame\"", &[]).unwrap();
        assert_eq!(args.api_key.as_deref(), Some("sesame"));
        assert!(!shown.contains("sesame"), "{shown}");
    }
}
