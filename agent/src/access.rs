//! Reads what listeners and their clients need from files: certificates, passwords, the access control list.

use std::path::Path;
use std::time::SystemTime;

use forebay_broker::auth::acl::AclError;
use forebay_broker::auth::password::PasswordFileError;
use forebay_broker::auth::{self, Access, Acl, PasswordFile};
use forebay_broker::tls::{ClientCertificates, ServerTls, TlsError, TlsSettings};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateRevocationListDer, PrivateKeyDer};

use crate::clock;
use crate::config::{Auth, ListenerTls};

/// A file that cannot be used, in one line that names it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FileError(String);

/// What is asked of clients.
///
/// # Errors
/// A file cannot be read, or a line of it is wrong.
pub fn read_access(config: &Auth) -> Result<Access, FileError> {
    let passwords = config.password_file.as_deref().map(|path| {
        PasswordFile::parse(&text(path)?).map_err(|error| match error {
            PasswordFileError::Line { line, problem } => at_line(path, line, problem),
            error @ PasswordFileError::TooLong { .. } => unusable(path, error),
        })
    });
    let acl = config.acl_file.as_deref().map(|path| {
        Acl::parse(&text(path)?).map_err(|error| match error {
            AclError::Line { line, problem } => at_line(path, line, problem),
            error @ AclError::TooLong { .. } => unusable(path, error),
        })
    });
    Ok(Access {
        passwords: passwords.transpose()?,
        acl: acl.transpose()?,
        refuse_anonymous: config.refuses_anonymous(),
    })
}

fn read_tls(tls: &ListenerTls) -> Result<TlsSettings, FileError> {
    let key = PrivateKeyDer::from_pem_file(&tls.key_file).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => unusable(&tls.key_file, "holds no private key in PEM"),
        error => unusable(&tls.key_file, error),
    })?;
    let clients = tls.clients.as_ref().map(|clients| {
        let revocation_lists = clients.crl.as_deref().map(all::<CertificateRevocationListDer<'static>>);
        Ok(ClientCertificates {
            authorities: all(&clients.ca)?,
            revocation_lists: revocation_lists.transpose()?.unwrap_or_default(),
            are_required: clients.required,
            identity: clients.identity,
        })
    });
    Ok(TlsSettings { chain: all(&tls.cert)?, key, clients: clients.transpose()? })
}

/// What a listener shows and asks for.
///
/// # Errors
/// A file cannot be read, is not what it should be, or does not belong to the others.
pub fn server_tls(tls: &ListenerTls) -> Result<ServerTls, FileError> {
    ServerTls::new(read_tls(tls)?).map_err(|error| mismatched(tls, &error))
}

/// What is wrong with certificates and key that do not belong together.
fn mismatched(tls: &ListenerTls, error: &TlsError) -> FileError {
    use TlsError::{Authority, Certificate, Key, Other, RevocationList};
    let file = match (error, &tls.clients) {
        (Authority(_), Some(clients)) => &clients.ca,
        (RevocationList(_), Some(clients)) => clients.crl.as_ref().unwrap_or(&clients.ca),
        (Key(_), _) => &tls.key_file,
        (Certificate(_) | Authority(_) | RevocationList(_) | Other(_), _) => &tls.cert,
    };
    unusable(file, error)
}

/// What will not work although the files can be used: a certificate that is not valid now.
pub fn expiry(files: &ListenerTls, tls: &ServerTls) -> Option<FileError> {
    let validity = tls.validity();
    let now = clock::wall();
    let date = |time: SystemTime| chrono::DateTime::<chrono::Utc>::from(time).format("%Y-%m-%d %H:%M UTC").to_string();
    let problem = if now < validity.begins {
        format!("is not valid before {}: is this machine's clock right?", date(validity.begins))
    } else if now > validity.ends {
        format!("expired on {}: put a renewed certificate there, it is read when the file changes", date(validity.ends))
    } else {
        return None;
    };
    Some(unusable(&files.cert, problem))
}

/// Everything of one kind in a PEM file; `none` says what is missing when there is nothing of it.
pub(crate) fn pem<T: PemObject>(path: &Path, none: &str) -> Result<Vec<T>, FileError> {
    let read = || T::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    match read() {
        Ok(items) if items.is_empty() => Err(unusable(path, format_args!("holds {none} in PEM"))),
        Ok(items) => Ok(items),
        Err(error) => Err(unusable(path, error)),
    }
}

fn all<T: PemObject>(path: &Path) -> Result<Vec<T>, FileError> {
    pem(path, "nothing of the kind")
}

fn text(path: &Path) -> Result<zeroize::Zeroizing<String>, FileError> {
    let read = || {
        let bytes = std::fs::metadata(path)?.len();
        if bytes == 0 {
            let words = "it is empty, as a full disk leaves a file; write a comment (#) into it if nobody is meant";
            return Err(std::io::Error::other(words));
        }
        if bytes > auth::FILE_BYTES_MAX as u64 {
            return Err(std::io::Error::other(format!("it has {bytes} bytes; {} are the most", auth::FILE_BYTES_MAX)));
        }
        std::fs::read_to_string(path)
    };
    read().map(zeroize::Zeroizing::new).map_err(|error| unusable(path, error))
}

pub(crate) fn unusable(path: &Path, problem: impl std::fmt::Display) -> FileError {
    FileError(format!("{}: {problem}", path.display()))
}

fn at_line(path: &Path, line: usize, problem: impl std::fmt::Display) -> FileError {
    FileError(format!("{}:{line}: {problem}", path.display()))
}
