//! `forebay passwd`: the password file, in the form that mosquitto reads too.
//!
//! A password comes from standard input only: an argument would stand in the process list and in the shell's history.
//! On a terminal it is asked for without echo (an interrupt at the prompt leaves that to the shell to mend), else it is
//! the first line. It is read byte by byte, so that no buffer but ours holds it, and that one is zeroed.
//!
//! # Edits
//! The new file is written beside the old one, synced and renamed, so a crash, the agent and mosquitto see one or the
//! other. Two `forebay passwd` at once take turns by a lock on the directory, held from reading to renaming: both edits
//! are there in the end. `mosquitto_passwd` takes no lock; what it writes meanwhile is lost, but never torn.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, IsTerminal as _, Write as _};
use std::num::NonZeroU32;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use forebay_broker::auth::FILE_BYTES_MAX;
use forebay_broker::auth::password::{ITERATIONS_MAX, PasswordFile, PasswordHash, SALT_BYTES_MOSQUITTO, check_user};
use forebay_storage::durable_fs::{DurableFs, read_bounded};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::output;
use crate::config::Config;

/// Bytes of a password: what a CONNECT can carry `[MQTT-3.1.3-12]`.
const PASSWORD_BYTES_MAX: usize = u16::MAX as usize;
/// How often, and after which pauses, another edit is waited for: 10 s.
const LOCK_LOOKS: u32 = 200;
const LOCK_LOOK_EVERY: Duration = Duration::from_millis(50);
/// Of a file that was not there.
const MODE_NEW: u32 = 0o600;

/// What `passwd` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Set a user's password, read from standard input
    Add {
        /// The user name; `:`, control characters, a `#` in front and blanks around it cannot be
        user: String,
        #[command(flatten)]
        file: FileArg,
        /// Iterations of PBKDF2: more cost a thief more, and each CONNECT as well
        #[arg(
            long, value_name = "N", default_value_t = 10_000,
            value_parser = clap::value_parser!(u32).range(1..=i64::from(ITERATIONS_MAX))
        )]
        iterations: u32,
    },
    /// Remove a user
    Remove {
        /// The user name
        user: String,
        #[command(flatten)]
        file: FileArg,
    },
    /// Tell whether the password on standard input is the user's: exit code 0, else 1
    Verify {
        /// The user name
        user: String,
        #[command(flatten)]
        file: FileArg,
    },
    /// List the user names
    List {
        #[command(flatten)]
        file: FileArg,
    },
}

#[derive(Debug, clap::Args)]
struct FileArg {
    /// The password file; by default that of `[auth] password_file`
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Runs the command. `load` reads the configuration, if it is needed.
pub(super) fn run(args: &Args, load: impl Fn() -> Result<Config>) -> Result<ExitCode> {
    match &args.command {
        Command::Add { user, file, iterations } => {
            check_user(user)?;
            let iterations = NonZeroU32::new(*iterations).context("--iterations must be at least 1")?;
            add(&file_of(file, load)?, user, iterations)
        }
        Command::Remove { user, file } => remove(&file_of(file, load)?, user),
        Command::Verify { user, file } => verify(&file_of(file, load)?, user),
        Command::List { file } => {
            let names: String = read(&file_of(file, load)?)?.users().map(|user| format!("{user}\n")).collect();
            output::print(&names)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Which file is meant.
fn file_of(args: &FileArg, load: impl Fn() -> Result<Config>) -> Result<PathBuf> {
    if let Some(file) = &args.file {
        return Ok(file.clone());
    }
    load()?.auth.password_file.context("the configuration names no [auth] password_file: say which with --file")
}

fn add(path: &Path, user: &str, iterations: NonZeroU32) -> Result<ExitCode> {
    let password = new_password(user)?;
    let mut salt = [0; SALT_BYTES_MOSQUITTO];
    SystemRandom::new().fill(&mut salt).ok().context("the system gives no random bytes for a salt")?;
    let hash = PasswordHash::new(&password, iterations, &salt);
    drop(password);
    let is_new = !path.exists();
    let existed = edit(path, |file| Ok(file.set(user, hash)?))?;
    output::print(&format!("{} {user}\n", if existed { "changed" } else { "added" }))?;
    if is_new {
        eprintln!("forebay: {} is new, with mode 0600: give it to the user that the agent runs as", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn remove(path: &Path, user: &str) -> Result<ExitCode> {
    read(path)?; // a file that is not there is not made
    edit(path, |file| {
        ensure!(file.remove(user), "{}: there is no user {user:?}", path.display());
        Ok(())
    })?;
    output::print(&format!("removed {user}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn verify(path: &Path, user: &str) -> Result<ExitCode> {
    let file = read(path)?;
    ensure!(file.get(user).is_some(), "{}: there is no user {user:?}", path.display());
    if file.verify(user, &ask(&format!("Password of {user}: "))?) {
        output::print("right\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    output::print("wrong\n")?;
    Ok(ExitCode::FAILURE)
}

fn read(path: &Path) -> Result<PasswordFile> {
    let bytes = read_bounded(path, FILE_BYTES_MAX as u64)?;
    let text = String::from_utf8(bytes).ok().with_context(|| format!("{}: is not UTF-8", path.display()))?;
    PasswordFile::parse(&text).with_context(|| path.display().to_string())
}

/// Changes the file, or makes it, while no other `forebay passwd` does.
fn edit<T>(path: &Path, change: impl FnOnce(&mut PasswordFile) -> Result<T>) -> Result<T> {
    // A link stays a link: what it points to is replaced.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let lock = File::open(dir).with_context(|| format!("open {}", dir.display()))?;
    take_turn(&lock).with_context(|| format!("lock {}", dir.display()))?;
    let (mut file, old) = match fs::metadata(path) {
        Ok(metadata) => (read(path)?, Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (PasswordFile::default(), None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let result = change(&mut file)?;
    write(path, dir, &file, old.as_ref())?;
    Ok(result)
}

/// Whoever may read the directory may hold its lock: it is not waited for without end.
fn take_turn(lock: &File) -> Result<()> {
    for _ in 0..LOCK_LOOKS {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_LOOK_EVERY),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
    bail!("another program holds it; nothing was changed")
}

/// Replaces the file by way of one that nobody else may read.
fn write(path: &Path, dir: &Path, file: &PasswordFile, old: Option<&fs::Metadata>) -> Result<()> {
    let mut text = file.to_string();
    if text.is_empty() {
        text.push_str("# nobody\n"); // an empty file is what a full disk leaves, and a running agent does not believe it
    }
    // What is written must be a file that can be read.
    PasswordFile::parse(&text).with_context(|| format!("{} is left as it was", path.display()))?;
    let at = || format!("write {}", path.display());
    let mut temporary = tempfile::Builder::new().prefix(".forebay-tmp-").tempfile_in(dir).with_context(at)?;
    temporary.write_all(text.as_bytes()).with_context(at)?;
    let mode = match old {
        Some(old) if keep_owner(temporary.as_file(), old) => old.mode() & 0o777,
        Some(old) => old.mode() & 0o700, // the group is another one
        None => MODE_NEW,
    };
    temporary.as_file().set_permissions(Permissions::from_mode(mode)).with_context(at)?;
    temporary.as_file().sync_all().with_context(at)?;
    // Afterwards the temporary name is gone, so there is nothing that dropping it could remove.
    DurableFs::new().rename(temporary.path(), path)?;
    Ok(())
}

/// Gives `file` the owner and group of the old one; says so where that may not be.
fn keep_owner(file: &File, old: &fs::Metadata) -> bool {
    let is_kept = file.metadata().is_ok_and(|new| (new.uid(), new.gid()) == (old.uid(), old.gid()))
        || fchown(file, Some(old.uid()), Some(old.gid())).is_ok();
    if !is_kept {
        let (user, group) = (old.uid(), old.gid());
        eprintln!("forebay: the file belonged to user {user} and group {group}, and is yours now: `chown` it back");
    }
    is_kept
}

/// Twice on a terminal, where a slip of a finger is not seen.
fn new_password(user: &str) -> Result<Zeroizing<Vec<u8>>> {
    let password = ask(&format!("New password of {user}: "))?;
    ensure!(!password.is_empty(), "the password is empty: write it on standard input, in one line");
    if io::stdin().is_terminal() && ask("Once more: ")? != password {
        bail!("the two passwords differ; nothing was changed");
    }
    Ok(password)
}

/// One line of standard input, asked for without echo if that is a terminal.
fn ask(prompt: &str) -> Result<Zeroizing<Vec<u8>>> {
    let _echo = if io::stdin().is_terminal() {
        eprint!("{prompt}");
        Some(EchoOff::new().context("turn the terminal's echo off")?)
    } else {
        None
    };
    let stdin = io::stdin().as_fd().try_clone_to_owned().context("open standard input")?;
    read_line(File::from(stdin))
}

/// The first line without its end. A buffer that grew would leave copies behind, so it has its size from the beginning.
#[expect(clippy::unbuffered_bytes, reason = "a password is short, and no other buffer may hold it")]
fn read_line(input: impl io::Read) -> Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(Vec::with_capacity(PASSWORD_BYTES_MAX + 1));
    for byte in input.bytes() {
        match byte.context("read the password from standard input")? {
            b'\n' => {
                if line.ends_with(b"\r") {
                    line.pop();
                }
                break;
            }
            _ if line.len() > PASSWORD_BYTES_MAX => break,
            byte => line.push(byte),
        }
    }
    ensure!(line.len() <= PASSWORD_BYTES_MAX, "the password is longer than {PASSWORD_BYTES_MAX} bytes");
    Ok(line)
}

/// The terminal shows nothing but the line feed until this is dropped.
struct EchoOff {
    before: Termios,
}

impl EchoOff {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        quiet.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
        Ok(Self { before })
    }
}

impl Drop for EchoOff {
    fn drop(&mut self) {
        // Nothing is left to be done if the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_the_first_line_whatever_its_bytes() {
        let lines: [(&[u8], &[u8]); 5] =
            [(b"a b\nc", b"a b"), (b"a\0\xff", b"a\0\xff"), (b"a\r\n", b"a"), (b"\n", b""), (b"", b"")];
        for (input, password) in lines {
            assert_eq!(**read_line(input).unwrap(), *password);
        }
    }

    #[test]
    fn a_password_that_no_connect_can_carry_is_refused() {
        let mut input = vec![b'x'; PASSWORD_BYTES_MAX];
        assert_eq!(read_line(&*input).unwrap().len(), PASSWORD_BYTES_MAX);
        input.push(b'x');
        let error = read_line(&*input).unwrap_err().to_string();
        assert_eq!(error, "the password is longer than 65535 bytes");
    }

    #[test]
    fn edits_at_the_same_time_are_all_there_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = &dir.path().join("passwords");
        std::thread::scope(|scope| {
            for thread in 0..3 {
                scope.spawn(move || {
                    for number in 0..5 {
                        let hash = PasswordHash::new(b"p", NonZeroU32::MIN, b"twelve bytes");
                        let existed = edit(path, |file| Ok(file.set(&format!("{thread}-{number}"), hash)?));
                        assert!(!existed.unwrap());
                    }
                });
            }
        });
        assert_eq!(read(path).unwrap().users().count(), 15);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }
}
