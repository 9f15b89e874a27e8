//! The name that a request has for this server. A page in a browser can make its own name mean 127.0.0.1 (DNS rebinding), and
//! what the page asks then looks like a request of the page to itself. Only `Host` (and `Origin`, where it is sent) tells it from
//! one of a program on this machine, so over loopback addresses both must be names of this machine, or listed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use patchhost_runtime::error::Refusal;

use super::error::{ApiError, ApiResult};
use crate::base::text::clean;

/// Longest name of a host, as DNS has it.
const MAX_NAME: usize = 253;

/// Who can reach a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Programs of this machine, over a loopback address: also a browser, for any page.
    Loopback,
    /// Other machines.
    Network,
    /// Who may open a unix socket: no browser can.
    Socket,
}

/// Names of this server besides those of the machine itself (`--allowed-host`).
#[derive(Debug, Clone, Default)]
pub struct Hosts {
    names: BTreeSet<String>,
    any: bool,
}

impl Hosts {
    /// Names or addresses, without a port; `*` allows all.
    pub fn new(given: &[String]) -> Result<Self, Refusal> {
        let mut hosts = Self::default();
        for text in given {
            if text == "*" {
                hosts.any = true;
                continue;
            }
            let bad = |why: &str| {
                let what = format!("--allowed-host {}", clean(text, 200));
                Refusal::new(what, why, "give a name or an address without scheme, port and path, or * for all")
            };
            // An address of version 6 may come without its brackets.
            let name = match text.parse::<IpAddr>() {
                Ok(ip) => ip.to_string(),
                Err(_) => {
                    let authority: Authority = text.parse().map_err(|_| bad("it is no name of a host"))?;
                    if authority.as_str() != authority.host() {
                        return Err(bad("it has more than the name of a host"));
                    }
                    plain(authority.host())
                }
            };
            if name.is_empty() || name.len() > MAX_NAME {
                return Err(bad("a name has 1 to 253 characters"));
            }
            hosts.names.insert(name);
        }
        Ok(hosts)
    }

    /// Whether a request that came over such a listener names the server as it may.
    pub fn check(&self, reach: Reach, uri: &Uri, headers: &HeaderMap) -> ApiResult<()> {
        let checked = match reach {
            Reach::Loopback => true,
            Reach::Network => !self.names.is_empty(),
            Reach::Socket => false,
        };
        if !checked || self.any {
            return Ok(());
        }
        if let Some(authority) = uri.authority() {
            self.host(reach, authority.as_str())?;
        }
        // Programs may leave it away; browsers never do.
        for value in headers.get_all(header::HOST).iter().filter(|value| !value.is_empty()) {
            self.host(reach, &String::from_utf8_lossy(value.as_bytes()))?;
        }
        for value in headers.get_all(header::ORIGIN) {
            self.origin(reach, &String::from_utf8_lossy(value.as_bytes()))?;
        }
        Ok(())
    }

    fn host(&self, reach: Reach, text: &str) -> ApiResult<()> {
        let name = text.parse::<Authority>().map(|authority| plain(authority.host()));
        let local = |name: &str| reach == Reach::Loopback && is_dotless(name);
        if name.as_deref().is_ok_and(|name| self.is_ours(reach, name) || local(name)) {
            return Ok(());
        }
        let name = name.unwrap_or_default();
        let why = match reach {
            Reach::Loopback => {
                "it is no name of this machine, and the server listens on a loopback address: a page in a browser could ask so"
            }
            _ => "it is neither an address nor a name that --allowed-host lists",
        };
        Err(refused(format!("a request with `Host: {}`", clean(text, 200)), why, &name))
    }

    fn origin(&self, reach: Reach, text: &str) -> ApiResult<()> {
        let name = text.parse::<Uri>().ok().and_then(|uri| uri.host().map(plain));
        if name.as_deref().is_some_and(|name| self.is_ours(reach, name)) {
            return Ok(());
        }
        let name = name.unwrap_or_default();
        let why = "a page in a browser sent it, and that page is not of this machine";
        Err(refused(format!("a request with `Origin: {}`", clean(text, 200)), why, &name))
    }

    fn is_ours(&self, reach: Reach, name: &str) -> bool {
        if self.names.contains(name) {
            return true;
        }
        match name.parse::<IpAddr>() {
            // A name can be made to mean another address, an address cannot. But 0.0.0.0 means this machine to some browsers.
            Ok(ip) => ip.to_canonical().is_loopback() || reach == Reach::Network,
            // What ends so never leaves this machine (RFC 6761).
            Err(_) => name == "localhost" || name.ends_with(".localhost"),
        }
    }
}

/// Whether a name has no dot, as names of containers and of machines in a local network do. No page in the internet has such a
/// name: registries may not give addresses to names without a dot (ICANN SAC 053).
fn is_dotless(name: &str) -> bool {
    let letter = name.bytes().any(|b| b.is_ascii_alphabetic());
    letter && !name.starts_with("0x") && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// A host as it is compared: in lower case, without the brackets of an address and the dot at the end of a full name.
fn plain(host: &str) -> String {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let host = host.strip_suffix('.').unwrap_or(host);
    // The same address can be written in several ways.
    host.parse::<IpAddr>().map_or_else(|_| host.to_ascii_lowercase(), |ip| ip.to_string())
}

fn refused(what: String, why: &str, name: &str) -> ApiError {
    let listed = match name {
        "" => "--allowed-host NAME".to_string(),
        name => format!("--allowed-host {}", clean(name, 200)),
    };
    let next = format!("ask for http://localhost or http://127.0.0.1; behind a proxy, start the server with {listed}");
    ApiError::new(StatusCode::FORBIDDEN, "forbidden_host", what, why, next)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn allowed(names: &[&str]) -> Hosts {
        Hosts::new(&names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
    }

    fn asked(hosts: &Hosts, reach: Reach, uri: &str, headers: &[(header::HeaderName, &str)]) -> ApiResult<()> {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        hosts.check(reach, &uri.parse().unwrap(), &headers)
    }

    fn with_host(hosts: &Hosts, reach: Reach, host: &str) -> ApiResult<()> {
        asked(hosts, reach, "/status", &[(header::HOST, host)])
    }

    const OURS: [&str; 14] = [
        "localhost",
        "localhost:8000",
        "LocalHost.:8000",
        "app.localhost",
        "127.0.0.1",
        "127.0.0.1:8000",
        "127.8.8.8:1",
        "[::1]:8000",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]:80",
        "",
        "localhost:",
        "patchhost",
        "trainer-0:8000",
    ];
    const OTHERS: [&str; 16] = [
        "evil.example",
        "evil.example:8000",
        "0x7f000001",
        "2130706433",
        "localhost.evil.example",
        "not.localhost.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "localhost@evil.example:8000",
        "0.0.0.0:8000",
        "10.0.0.7",
        "[::]:8000",
        "[fe80::1]",
        "169.254.169.254",
        "a b",
        "http://localhost",
    ];

    #[test]
    fn over_loopback_only_names_of_this_machine_are_taken() {
        let hosts = Hosts::default();
        for host in OURS {
            assert!(with_host(&hosts, Reach::Loopback, host).is_ok(), "{host}");
        }
        for host in OTHERS {
            let error = with_host(&hosts, Reach::Loopback, host).unwrap_err();
            assert_eq!(error.status(), 403, "{host}");
            assert!(error.message().contains("--allowed-host"), "{error}");
            assert!(with_host(&hosts, Reach::Socket, host).is_ok() && with_host(&hosts, Reach::Network, host).is_ok());
        }
        // Every place where a host can stand is looked at.
        let two = [(header::HOST, "localhost"), (header::HOST, "evil.example")];
        assert!(asked(&hosts, Reach::Loopback, "/status", &two).is_err());
        assert!(asked(&hosts, Reach::Loopback, "http://evil.example/status", &[(header::HOST, "localhost")]).is_err());
        assert!(asked(&hosts, Reach::Loopback, "/status", &[]).is_ok());
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let hosts = Hosts::default();
        let from = |origin: &str| asked(&hosts, Reach::Loopback, "/status", &[(header::ORIGIN, origin)]);
        for origin in ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:8000"] {
            assert!(from(origin).is_ok(), "{origin}");
        }
        for origin in ["https://evil.example", "null", "", "file://", "http://localhost.evil.example", "x y"] {
            assert_eq!(from(origin).unwrap_err().status(), 403, "{origin}");
        }
    }

    #[test]
    fn what_is_listed_is_taken() {
        let hosts = allowed(&["Models.Example", "10.0.0.7", "::2"]);
        for host in ["models.example", "MODELS.example.:443", "10.0.0.7:8000", "[::2]", "localhost"] {
            assert!(with_host(&hosts, Reach::Loopback, host).is_ok(), "{host}");
        }
        assert!(with_host(&hosts, Reach::Loopback, "other.models.example").is_err());
        let origin = [(header::HOST, "models.example"), (header::ORIGIN, "https://models.example")];
        assert!(asked(&hosts, Reach::Loopback, "/status", &origin).is_ok());
        // With a list, names are looked at over a network too; addresses cannot be rebound.
        assert!(with_host(&hosts, Reach::Network, "evil.example").is_err());
        assert!(with_host(&hosts, Reach::Network, "192.168.0.3:8000").is_ok());
        assert!(with_host(&allowed(&["*"]), Reach::Loopback, "evil.example").is_ok());
    }

    #[test]
    fn what_is_no_name_cannot_be_listed() {
        let long = "a".repeat(254);
        for wrong in ["", "http://a.example", "a.example:80", "a b", "u@a.example", "a/b", long.as_str()] {
            let refusal = Hosts::new(&[wrong.to_string()]).unwrap_err();
            assert!(refusal.what.starts_with("--allowed-host"), "{refusal}");
        }
    }
}
