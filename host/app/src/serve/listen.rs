//! Where the server listens: TCP ports and unix sockets.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::auth::Via;
use super::hosts::Reach;

/// An address as it is given on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`; port 0 takes a free one.
    Tcp(String),
    /// `unix:PATH`, a socket that the server makes.
    Unix(PathBuf),
}

impl Address {
    /// Whether only programs on this machine can reach it.
    pub fn is_local(&self) -> bool {
        let Self::Tcp(address) = self else { return true };
        match address.parse::<SocketAddr>() {
            Ok(address) => address.ip().to_canonical().is_loopback(),
            // A name is looked up when it is bound; of names only this one is known to stay here.
            Err(_) => address.rsplit_once(':').is_some_and(|(host, _)| host.eq_ignore_ascii_case("localhost")),
        }
    }
}

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err("a socket is unix:PATH".to_string()),
                path => Ok(Self::Unix(path.into())),
            };
        }
        match text.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>())) {
            Some((host, Ok(_))) if !host.is_empty() => Ok(Self::Tcp(text.to_string())),
            _ => Err("an address is HOST:PORT (port 0 takes a free one) or unix:PATH".to_string()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An address that the server listens on.
pub struct Listener {
    kind: Kind,
    /// What requests over it are marked with.
    pub via: Via,
}

enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// Removes the socket's file when the server ends.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub enum Stream {
    Tcp(TcpStream),
    /// Over a unix socket.
    Unix(UnixStream),
}

impl Listener {
    /// Opens an address for requests of everybody who can reach it.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => {
                Ok(Self { kind: Kind::Tcp(TcpListener::bind(address.as_str()).await?), via: Via::Tcp })
            }
            Address::Unix(path) => Self::unix(path, Via::Unix),
        }
    }

    /// Opens the admin socket: its mode is 0600 from the start, so that only this user can open it.
    pub fn admin(path: &Path) -> io::Result<Self> {
        Self::unix(path, Via::Admin)
    }

    fn unix(path: &Path, via: Via) -> io::Result<Self> {
        use std::os::unix::fs::{FileTypeExt, PermissionsExt};
        // A server that was killed leaves its socket behind: nobody answers there. Anything else is not ours to remove.
        if let Ok(found) = std::fs::symlink_metadata(path) {
            if !found.file_type().is_socket() {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something that is not a socket"));
            }
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another server listens there"));
            }
            std::fs::remove_file(path)?;
        }
        if via != Via::Admin {
            return Ok(Self { kind: Kind::Unix(UnixListener::bind(path)?, SocketFile(path.into())), via });
        }
        // Bound under another name first: between `bind` and `chmod` others could open it.
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let hidden = tempfile::Builder::new().prefix(".admin-").tempdir_in(folder)?;
        let inside = hidden.path().join("s");
        let listener = UnixListener::bind(&inside)?;
        std::fs::set_permissions(&inside, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&inside, path)?;
        Ok(Self { kind: Kind::Unix(listener, SocketFile(path.into())), via })
    }

    /// Waits for the next connection.
    pub async fn accept(&self) -> io::Result<Stream> {
        match &self.kind {
            Kind::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Tokens are small writes: without this each would wait for the acknowledgement of the last.
                let _ = stream.set_nodelay(true);
                Ok(Stream::Tcp(stream))
            }
            Kind::Unix(listener, _) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }

    /// Who can reach it.
    pub fn reach(&self) -> Reach {
        match &self.kind {
            Kind::Unix(..) => Reach::Socket,
            Kind::Tcp(listener) => match listener.local_addr() {
                Ok(address) if !address.ip().to_canonical().is_loopback() => Reach::Network,
                _ => Reach::Loopback,
            },
        }
    }

    /// The TCP address, with the port that was taken.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match &self.kind {
            Kind::Tcp(listener) => listener.local_addr().ok(),
            Kind::Unix(..) => None,
        }
    }
}

impl fmt::Display for Listener {
    /// As a URL, or `unix:PATH`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "http://{address}"),
                Err(_) => f.write_str("http://?"),
            },
            Kind::Unix(_, file) => write!(f, "unix:{}", file.0.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!("unix:/run/x".parse(), Ok(Address::Unix("/run/x".into())));
        assert_eq!("[::1]:0".parse(), Ok(Address::Tcp("[::1]:0".into())));
        for wrong in ["", "unix:", "8000", ":8000", "localhost", "localhost:99999"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn sockets_are_replaced_only_where_nobody_answers() {
        use std::os::unix::fs::PermissionsExt;
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("admin");
        let first = Listener::admin(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 1);
        assert!(Listener::admin(&path).is_err());
        drop(first);
        assert!(!path.exists());
        // As a killed server leaves it.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        drop(Listener::admin(&path).unwrap());
        std::fs::write(&path, "a file").unwrap();
        assert!(Listener::admin(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
    }
}
