//! Who a device is, and where it may publish: mosquitto's two files, read and asked. Pure: text and bytes come in as
//! arguments, answers go out; whoever holds the files reads them, and reads them again when they change.
//!
//! Reading order: [`password`] (is it that user?), [`acl`] (may that user publish to this topic?), `access` (what both mean
//! for a client), `attempts` (how often a login may fail), `logins` (verifying passwords without keeping anybody else from
//! working; the only part that is not pure).
//!
//! Both files are those of mosquitto 2.0, because they are what gateways have and what their tools write. Where
//! mosquitto skips a line that it does not understand, we refuse the file and name the line: a typo must neither lock a
//! device out in silence nor let one in.

mod access;
pub mod acl;
mod attempts;
mod logins;
pub mod password;

pub use self::access::Access;
pub(crate) use self::access::Decision;
pub use self::acl::Acl;
pub(crate) use self::logins::{Logins, NotNow, Verification};
pub use self::password::PasswordFile;

/// Bytes of a password file or an ACL file. A larger one is refused whole.
pub const FILE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// `text` without the blanks around it, as C's `isspace` knows them. Blanks beyond ASCII belong to a name.
fn trim(text: &str) -> &str {
    text.trim_matches(is_blank)
}

fn is_blank(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\x0b'
}
