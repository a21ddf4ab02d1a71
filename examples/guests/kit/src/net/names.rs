//! Names: which address one has, as a resolver tells (RFC 1035).

use alloc::vec::Vec;
use core::net::IpAddr;

use smoltcp::socket::dns::{GetQueryResultError, Socket};
use smoltcp::wire::{DnsQueryType, IpAddress};

use super::{Error, Net};

/// Resolvers that are asked, one after the other: so many as a feature of the stack says.
const RESOLVERS_MAX: usize = 3;

impl Net {
    /// The resolvers that are asked: those of the settings, or else those that DHCP has told of.
    #[must_use]
    pub fn resolvers(&self) -> &[IpAddr] {
        &self.resolvers
    }

    /// The address of a name, of IPv4 if it has one. `None` if it has none, no resolver is known, or none answers,
    /// ten seconds each.
    ///
    /// # Errors
    /// The device broke.
    pub fn resolve(&mut self, name: &str) -> Result<Option<IpAddr>, Error> {
        if self.resolvers.is_empty() {
            return Ok(None);
        }
        let servers: Vec<IpAddress> =
            self.resolvers.iter().take(RESOLVERS_MAX).map(|&server| server.into()).collect();
        let socket = self.sockets.add(Socket::new(&servers, Vec::new()));
        let mut found = Ok(None);
        for kind in [DnsQueryType::A, DnsQueryType::Aaaa] {
            let query =
                self.sockets.get_mut::<Socket<'_>>(socket).start_query(self.interface.context(), name, kind);
            let Ok(query) = query else { break };
            found = loop {
                if let Err(error) = self.poll() {
                    break Err(error);
                }
                match self.sockets.get_mut::<Socket<'_>>(socket).get_query_result(query) {
                    Ok(addresses) => break Ok(addresses.first().map(|&address| address.into())),
                    Err(GetQueryResultError::Failed) => break Ok(None),
                    Err(GetQueryResultError::Pending) => {}
                }
                if let Err(error) = self.wait(None) {
                    break Err(error);
                }
            };
            if !matches!(found, Ok(None)) {
                break;
            }
        }
        drop(self.sockets.remove(socket));
        found
    }
}
