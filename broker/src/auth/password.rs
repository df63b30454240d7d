//! The password file: who may connect, in the form that `mosquitto_passwd` writes.
//!
//! ```text
//! # a comment
//! NAME:$7$ITERATIONS$SALT$HASH     PBKDF2-HMAC-SHA512 (mosquitto 2.0, and `forebay passwd`)
//! NAME:$6$SALT$HASH                SHA-512 of the password and the salt after it (mosquitto before 2.0)
//! ```
//!
//! SALT and HASH are base64 with padding, HASH is of 64 bytes. Blanks around a name or a hash do not count. Everything
//! else is refused with its line, and no message shows what stands there: it may be a password in clear text.
//!
//! A password is any bytes, NUL among them (MQTT 5.0 section 3.1.3.6). mosquitto stops at the first NUL, so a password
//! that has one is another password there. NULs at the end of a password change nothing in `$7$`: HMAC pads with them.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::{digest, pbkdf2};
use subtle::ConstantTimeEq as _;
use thiserror::Error;

use super::{FILE_BYTES_MAX, is_blank, trim};

/// Users of one file.
pub const USERS_MAX: usize = 100_000;
/// Bytes of a user name.
pub const USER_BYTES_MAX: usize = 256;
/// Iterations of PBKDF2 in one line: some seconds of one core for each CONNECT. More is a typo.
pub const ITERATIONS_MAX: u32 = 10_000_000;
/// Bytes of a salt. mosquitto 2.0 writes and reads [`SALT_BYTES_MOSQUITTO`] only.
pub const SALT_BYTES_MAX: usize = 255;
/// Bytes of the salts that mosquitto 2.0 takes.
pub const SALT_BYTES_MOSQUITTO: usize = 12;
const HASH_BYTES: usize = digest::SHA512_OUTPUT_LEN;

/// One line's hash. Debug never shows it. PartialEq tells whether an entry changed.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash {
    scheme: Scheme,
    salt: Box<[u8]>,
    hash: [u8; HASH_BYTES],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scheme {
    /// `$6$`
    Sha512,
    /// `$7$`
    Pbkdf2 { iterations: NonZeroU32 },
}

/// Why what stands after a name is not a hash that we can check. No message shows any of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HashError {
    /// Nothing after the colon.
    #[error("there is no password after the name: set one with `forebay passwd add`")]
    Missing,
    /// No `$` in front: most likely a password.
    #[error(
        "the password is not hashed: set it with `forebay passwd add`, or hash the file with `mosquitto_passwd -U`, \
         and choose another one if others could read it"
    )]
    ClearText,
    /// `$argon2id$` and other schemes.
    #[error(
        "the scheme of the hash is not known; `$7$` and `$6$` are: set the password with `forebay passwd add`, or with \
         `mosquitto_passwd -H sha512-pbkdf2`"
    )]
    Scheme,
    /// Too few or too many parts.
    #[error("the hash is cut short or has too many parts; it reads `$7$iterations$salt$hash` or `$6$salt$hash`")]
    Parts,
    /// Not a number, zero, or too many.
    #[error("the iterations must be a whole number from 1 to {ITERATIONS_MAX}")]
    Iterations,
    /// Not base64, empty, or too long.
    #[error("the salt must be base64 of 1 to {SALT_BYTES_MAX} bytes")]
    Salt,
    /// Not base64, or not of 64 bytes.
    #[error("the hash must be base64 of {HASH_BYTES} bytes; was the line cut?")]
    Hash,
}

impl PasswordHash {
    /// Reads `$7$iterations$salt$hash` or `$6$salt$hash`.
    ///
    /// # Errors
    /// [`HashError`], which says what to do and shows nothing of `text`.
    pub fn parse(text: &str) -> Result<Self, HashError> {
        if text.is_empty() {
            return Err(HashError::Missing);
        }
        let mut parts = text.strip_prefix('$').ok_or(HashError::ClearText)?.split('$');
        let scheme = match parts.next() {
            Some("6") => Scheme::Sha512,
            Some("7") => {
                let iterations = parse_iterations(parts.next().ok_or(HashError::Parts)?)?;
                Scheme::Pbkdf2 { iterations }
            }
            _ => return Err(HashError::Scheme),
        };
        let (Some(salt), Some(hash), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(HashError::Parts);
        };
        let salt = BASE64.decode(salt).map_err(|_| HashError::Salt)?;
        if salt.is_empty() || salt.len() > SALT_BYTES_MAX {
            return Err(HashError::Salt);
        }
        let hash = BASE64.decode(hash).map_err(|_| HashError::Hash)?;
        let hash = hash.try_into().map_err(|_| HashError::Hash)?;
        Ok(Self { scheme, salt: salt.into(), hash })
    }

    /// Hashes a password with PBKDF2-HMAC-SHA512, the `$7$` form. [`parse`](Self::parse) takes what this gives when
    /// `iterations` are at most [`ITERATIONS_MAX`] and `salt` has 1 to [`SALT_BYTES_MAX`] bytes; mosquitto 2.0 only
    /// with [`SALT_BYTES_MOSQUITTO`].
    pub fn new(password: &[u8], iterations: NonZeroU32, salt: &[u8]) -> Self {
        let scheme = Scheme::Pbkdf2 { iterations };
        Self { scheme, salt: salt.into(), hash: scheme.hash(password, salt) }
    }

    /// Whether this is the password. The comparison takes the same time wherever the first difference is.
    pub fn verify(&self, password: &[u8]) -> bool {
        self.scheme.hash(password, &self.salt).ct_eq(&self.hash).into()
    }

    fn rounds(&self) -> u32 {
        match self.scheme {
            Scheme::Sha512 => 1, // not quite, and nobody can measure the difference through a network
            Scheme::Pbkdf2 { iterations } => iterations.get(),
        }
    }
}

impl Scheme {
    fn hash(self, password: &[u8], salt: &[u8]) -> [u8; HASH_BYTES] {
        let mut hash = [0; HASH_BYTES];
        match self {
            Self::Sha512 => {
                let mut context = digest::Context::new(&digest::SHA512);
                context.update(password);
                context.update(salt);
                hash.copy_from_slice(context.finish().as_ref());
            }
            Self::Pbkdf2 { iterations } => {
                pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA512, iterations, salt, password, &mut hash);
            }
        }
        hash
    }
}

/// As `mosquitto_passwd` writes it.
impl fmt::Display for PasswordHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (salt, hash) = (BASE64.encode(&self.salt), BASE64.encode(self.hash));
        match self.scheme {
            Scheme::Sha512 => write!(formatter, "$6${salt}${hash}"),
            Scheme::Pbkdf2 { iterations } => write!(formatter, "$7${iterations}${salt}${hash}"),
        }
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PasswordHash(..)")
    }
}

/// All users of a password file, with its comments. Debug shows user names at most.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PasswordFile {
    entries: Vec<Entry>,
    /// Where each user stands in `entries`.
    index: HashMap<String, usize>,
    /// Comments and empty lines after the last user.
    after: String,
    /// Of the costliest line; 0 without users.
    rounds_max: u32,
}

#[derive(Clone, PartialEq, Eq)]
struct Entry {
    /// Comments and empty lines in front of the line, each with its line feed.
    before: String,
    user: String,
    hash: PasswordHash,
}

/// Why a password file is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PasswordFileError {
    /// More than [`FILE_BYTES_MAX`].
    #[error("the password file has {bytes} bytes; {FILE_BYTES_MAX} are the most")]
    TooLong {
        /// Of the file.
        bytes: usize,
    },
    /// A line that cannot be used.
    #[error("line {line}: {problem}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong, and what to do.
        problem: LineProblem,
    },
}

/// What is wrong with a line of a password file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LineProblem {
    /// Neither a comment nor `name:hash`.
    #[error("there is no colon; write `name:hash` with `forebay passwd add`, or begin a comment with `#`")]
    NoColon,
    /// The name cannot be used.
    #[error(transparent)]
    User(#[from] UserNameError),
    /// The hash cannot be used.
    #[error("user {user:?}: {problem}")]
    Hash {
        /// The name before the colon.
        user: String,
        /// What is wrong, and what to do.
        problem: HashError,
    },
    /// The same name again.
    #[error("user {user:?} is there twice: remove one of the lines")]
    Twice {
        /// The name.
        user: String,
    },
    /// More than [`USERS_MAX`].
    #[error("there are more than {USERS_MAX} users")]
    TooManyUsers,
}

/// Why a user name cannot stand in a password file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UserNameError {
    /// Nothing, or blanks only.
    #[error("the user name is empty")]
    Empty,
    /// More than [`USER_BYTES_MAX`].
    #[error("the user name is longer than {USER_BYTES_MAX} bytes")]
    TooLong,
    /// It would read as another name, or as a comment.
    #[error("a user name cannot contain `:` or control characters, begin with `#`, or begin or end with a blank")]
    Characters,
}

impl PasswordFile {
    /// Reads the text of a password file.
    ///
    /// # Errors
    /// [`PasswordFileError`], which names the line and shows nothing of its hash.
    pub fn parse(text: &str) -> Result<Self, PasswordFileError> {
        if text.len() > FILE_BYTES_MAX {
            return Err(PasswordFileError::TooLong { bytes: text.len() });
        }
        let mut file = Self::default();
        for (position, line) in text.lines().enumerate() {
            file.take_line(line).map_err(|problem| PasswordFileError::Line { line: position + 1, problem })?;
        }
        Ok(file)
    }

    /// The hash of a user.
    pub fn get(&self, user: &str) -> Option<&PasswordHash> {
        self.entries.get(*self.index.get(user)?).map(|entry| &entry.hash)
    }

    /// Whether this is the password of this user. A refusal takes as long as the costliest line of the file, so its
    /// duration tells neither whether there is such a user nor which line is his.
    pub fn verify(&self, user: &str, password: &[u8]) -> bool {
        let hash = self.get(user);
        if hash.is_some_and(|hash| hash.verify(password)) {
            return true;
        }
        let spent = hash.map_or(0, PasswordHash::rounds);
        if let Some(iterations) = NonZeroU32::new(self.rounds_max.saturating_sub(spent)) {
            let decoy = Scheme::Pbkdf2 { iterations }.hash(password, &[0; SALT_BYTES_MOSQUITTO]);
            std::hint::black_box(decoy);
        }
        false
    }

    /// The user names, in the order of the file.
    pub fn users(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| &*entry.user)
    }

    /// Gives a user this hash, in the user's line or in a new last one. Tells whether the user was there.
    ///
    /// # Errors
    /// [`UserNameError`] when the name cannot stand in a password file.
    pub fn set(&mut self, user: &str, hash: PasswordHash) -> Result<bool, UserNameError> {
        check_user(user)?;
        let known = self.index.get(user).and_then(|&position| self.entries.get_mut(position));
        let existed = known.is_some();
        match known {
            Some(entry) => entry.hash = hash,
            None => self.push(user, hash),
        }
        self.rounds_max = self.entries.iter().map(|entry| entry.hash.rounds()).max().unwrap_or(0);
        Ok(existed)
    }

    /// Removes a user's line; comments in front of it stay. Tells whether the user was there.
    pub fn remove(&mut self, user: &str) -> bool {
        let Some(position) = self.index.remove(user) else {
            return false;
        };
        let removed = self.entries.remove(position);
        let next = self.entries.get_mut(position).map_or(&mut self.after, |entry| &mut entry.before);
        next.insert_str(0, &removed.before);
        self.index = (0..).zip(&self.entries).map(|(position, entry)| (entry.user.clone(), position)).collect();
        self.rounds_max = self.entries.iter().map(|entry| entry.hash.rounds()).max().unwrap_or(0);
        true
    }

    fn take_line(&mut self, line: &str) -> Result<(), LineProblem> {
        let line = trim(line);
        if line.is_empty() || line.starts_with('#') {
            self.after.push_str(line);
            self.after.push('\n');
            return Ok(());
        }
        let (user, hash) = line.split_once(':').ok_or(LineProblem::NoColon)?;
        let user = trim(user);
        check_user(user)?;
        let hash =
            PasswordHash::parse(trim(hash)).map_err(|problem| LineProblem::Hash { user: user.to_owned(), problem })?;
        if self.index.contains_key(user) {
            return Err(LineProblem::Twice { user: user.to_owned() });
        }
        if self.entries.len() >= USERS_MAX {
            return Err(LineProblem::TooManyUsers);
        }
        self.rounds_max = self.rounds_max.max(hash.rounds());
        self.push(user, hash);
        Ok(())
    }

    fn push(&mut self, user: &str, hash: PasswordHash) {
        self.index.insert(user.to_owned(), self.entries.len());
        self.entries.push(Entry { before: std::mem::take(&mut self.after), user: user.to_owned(), hash });
    }
}

/// The text of the file: comments and order are kept, blanks around names and hashes are not.
impl fmt::Display for PasswordFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Entry { before, user, hash } in &self.entries {
            writeln!(formatter, "{before}{user}:{hash}")?;
        }
        formatter.write_str(&self.after)
    }
}

impl fmt::Debug for PasswordFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("PasswordFile").field(&self.users().collect::<Vec<_>>()).finish()
    }
}

fn parse_iterations(text: &str) -> Result<NonZeroU32, HashError> {
    let iterations = text.parse().ok().filter(|iterations: &NonZeroU32| iterations.get() <= ITERATIONS_MAX);
    iterations.filter(|_| !text.starts_with('+')).ok_or(HashError::Iterations)
}

/// Whether a name can stand in a password file.
///
/// # Errors
/// [`UserNameError`], which says what a name cannot have.
pub fn check_user(user: &str) -> Result<(), UserNameError> {
    if trim(user).is_empty() {
        return Err(UserNameError::Empty);
    }
    if user.len() > USER_BYTES_MAX {
        return Err(UserNameError::TooLong);
    }
    let has_outer_blank = user.starts_with(is_blank) || user.ends_with(is_blank);
    if has_outer_blank || user.starts_with('#') || user.contains(|c: char| c == ':' || c.is_control()) {
        return Err(UserNameError::Characters);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
