//! Files that systemd brings: for a key that names a file, `credential:NAME` is the credential of that name, which
//! LoadCredential= and its like put below `$CREDENTIALS_DIRECTORY` (`systemd.exec(5)`).
//!
//! The tree is changed before it is read, so that whoever reads a key need not know. Only the service's own processes have
//! the directory: without it a credential stays as it is written, for commands that open no such file.

use std::path::Path;

use super::document::{ConfigError, Node, Value};

/// The variable that names the directory.
pub(super) const DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
const PREFIX: &str = "credential:";
/// Keys that name a file, with all that end in [`FILE_SUFFIX`].
const FILE_KEYS: [&str; 3] = ["cert", "client_ca", "client_crl"];
const FILE_SUFFIX: &str = "_file";

/// Puts paths in the place of credentials. Answers what is wrong with the first that stays as it is, if there is no `dir`.
///
/// # Errors
/// What follows `credential:` is no name.
pub(super) fn resolve(node: &mut Node, dir: Option<&Path>) -> Result<Option<ConfigError>, ConfigError> {
    let children: Vec<&mut Node> = match &mut node.value {
        Value::Table(entries) => entries.iter_mut().map(|(_, node)| node).collect(),
        Value::List(nodes) => nodes.iter_mut().collect(),
        Value::Text(text) => {
            let Some(name) = text.strip_prefix(PREFIX).filter(|_| names_a_file(&node.key)) else { return Ok(None) };
            if name.is_empty() || name.contains('/') || matches!(name, "." | "..") {
                let problem = format!("{text:?}: the name of a credential, as LoadCredential= gives it, has no `/`");
                return Err(node.error(problem));
            }
            let Some(dir) = dir else {
                let problem = format!(
                    "{DIRECTORY} is not set: systemd sets it for a service whose unit says LoadCredential={name}:/path/to/file"
                );
                return Ok(Some(node.error(problem)));
            };
            *text = dir.join(name).display().to_string();
            return Ok(None);
        }
        _ => return Ok(None),
    };
    let mut missing = None;
    for child in children {
        missing = missing.or(resolve(child, dir)?);
    }
    Ok(missing)
}

fn names_a_file(key: &str) -> bool {
    let key = key.rsplit('.').next().unwrap_or(key);
    key.ends_with(FILE_SUFFIX) || FILE_KEYS.contains(&key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Secret, read};

    const TEXT: &str = "
        [[listener]]
        bind = \"0.0.0.0:8883\"
        tls = { cert = \"credential:crt\", key_file = \"credential:key\", client_ca = \"credential:ca\", client_crl = \"/crl\" }
        [auth]
        password_file = \"credential:passwd\"
        [[source]]
        name = \"plant\"
        url = \"mqtts://plant\"
        topics = [\"credential:x\"]
        username = \"gw\"
        password_file = \"credential:plant\"
        [[upstream]]
        url = \"https://node/acme\"
        token_file = \"credential:token\"
    ";

    #[test]
    fn every_key_that_names_a_file_takes_a_credential_and_no_other_key_does() {
        let (config, missing) = resolved(TEXT, Some("/run/credentials/forebay.service")).unwrap();

        let dir = Path::new("/run/credentials/forebay.service");
        let tls = config.listeners[0].tls.clone().unwrap();
        let clients = tls.clients.unwrap();
        assert_eq!((tls.cert, tls.key_file, clients.ca), (dir.join("crt"), dir.join("key"), dir.join("ca")));
        assert_eq!(clients.crl.as_deref(), Some(Path::new("/crl")));
        assert_eq!(config.auth.password_file, Some(dir.join("passwd")));
        assert_eq!(config.upstreams[0].token, Some(Secret::File(dir.join("token"))));
        assert!(format!("{:?}", config.sources[0].login).contains("forebay.service/plant"));
        assert_eq!(config.sources[0].topics[0].filter, "credential:x");
        assert_eq!(missing, None);
    }

    #[test]
    fn without_the_directory_the_first_is_named_with_its_line_and_what_a_unit_must_say() {
        let (config, missing) = resolved(TEXT, None).unwrap();

        let missing = missing.unwrap().to_string();
        assert!(
            missing.starts_with("forebay.toml:4:17: `listener.tls.cert`: CREDENTIALS_DIRECTORY is not set"),
            "{missing}"
        );
        assert!(missing.contains("LoadCredential=crt:"), "{missing}");
        assert_eq!(config.upstreams[0].token, Some(Secret::File("credential:token".into())));
    }

    #[test]
    fn a_name_is_one_component_of_a_path() {
        for name in ["", "a/b", "/etc/shadow", "..", "."] {
            let text = format!("[auth]\npassword_file = \"credential:{name}\"");

            let error = resolved(&text, Some("/run")).unwrap_err().to_string();

            assert!(error.starts_with("forebay.toml:2:1: `auth.password_file`: "), "{error}");
            assert!(error.contains("has no `/`"), "{error}");
        }
    }

    fn resolved(text: &str, dir: Option<&str>) -> Result<(Config, Option<ConfigError>), ConfigError> {
        let mut tree = Node::parse(text, Path::new("forebay.toml"))?;
        let missing = resolve(&mut tree, dir.map(Path::new))?;
        Ok((read::config(tree)?, missing))
    }
}
