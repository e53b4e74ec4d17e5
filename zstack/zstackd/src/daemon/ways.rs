//! The routes, where the kernel knows them: see [`Config::follow_routes`](crate::config::Config::follow_routes).

use super::Daemon;
use crate::config::{Config, Prefix};
use crate::front::{Follow, Network, Way};
use crate::wire::{Unbound, within};
use crate::worker::Letter;
use log::{info, warn};
use std::net::IpAddr;
use std::sync::Arc;
use zstack::net::{Address, Route, check_routes};
use zstack::port::Medium;

/// The routes that are followed.
pub(super) struct Followed {
    follow: Follow,
    /// What is reached through zstackd whatever they say: the networks of its addresses, or what the configuration names.
    always: Vec<Network>,
    /// The configuration names that.
    named: bool,
    /// The families of its addresses.
    families: [bool; 2],
    /// As they were last.
    ways: Vec<Way>,
}

impl Followed {
    /// Begins, if the configuration says so. `interface`: the port's.
    ///
    /// # Errors
    /// A line for the user.
    pub fn new(config: &Config, interface: Option<&str>) -> Result<Option<Followed>, String> {
        if !config.follow_routes {
            return Ok(None);
        }
        let interface = interface.ok_or(
            "follow-routes: this port is no interface that the kernel uses too: leave it out, and give `gateways`",
        )?;
        let follow = within(config.port_namespace.as_deref(), || Follow::new(interface))?.map_err(|e| e.to_string())?;
        let network = |prefix: &Prefix| Network { address: prefix.ip, prefix: prefix.len };
        let has = |v6: bool| config.addresses.iter().any(|address| address.ip.is_ipv6() == v6);
        let mut followed = Followed {
            follow,
            always: config.served().iter().map(network).collect(),
            named: config.remotes.is_some(),
            families: [has(false), has(true)],
            ways: Vec::new(),
        };
        followed.read()?;
        Ok(Some(followed))
    }

    /// What can be slept on until routes may have changed.
    pub fn fd(&self) -> &Follow {
        &self.follow
    }

    /// Reads them. Whether they are other ones.
    fn read(&mut self) -> Result<bool, String> {
        let mut ways = self.follow.ways().map_err(|e| e.to_string())?;
        ways.retain(|way| self.families[usize::from(way.network.address.is_ipv6())]);
        let before = std::mem::replace(&mut self.ways, ways);
        Ok(before != self.ways)
    }

    /// For the engine.
    pub fn routes(&self) -> Vec<Route> {
        let route = |way: &Way| {
            let Network { address, prefix } = way.network;
            Route { network: Address { ip: address, prefix }, gateway: way.gateway }
        };
        self.ways.iter().map(route).collect()
    }

    /// For the front.
    pub fn served(&self) -> Vec<Network> {
        let mut served = self.always.clone();
        // Addresses of a link mean nothing on another one.
        let is_of_a_link = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        let ways = self.ways.iter().map(|way| way.network).filter(|network| !is_of_a_link(network.address));
        for network in ways.filter(|_| !self.named) {
            if !served.iter().any(|other| other.is(&network)) {
                served.push(network);
            }
        }
        served
    }
}

impl<U: Unbound> Daemon<U> {
    /// The kernel says that routes may have changed. If they cannot be followed all stays as it was.
    pub(super) fn routes_changed(&mut self) -> Result<(), String> {
        let Some(followed) = &mut self.followed else { return Ok(()) };
        if !followed.follow.changed().map_err(|e| format!("netlink: {e}"))? || !followed.read()? {
            return Ok(());
        }
        let (routes, served): (Arc<[Route]>, _) = (followed.routes().into(), followed.served());
        let addresses: Vec<_> = self.with.config.addresses.iter().map(Prefix::address).collect();
        // A device that the kernel uses too is one with stations.
        if let Err(e) = check_routes(&routes, &addresses, Medium::Ethernet) {
            warn!("follow-routes: the routes of before are kept: {e}");
            return Ok(());
        }
        for worker in 0..self.with.mail.workers() {
            self.with.mail.send(worker, Letter::Routes(routes.clone()));
        }
        match self.front.serve(served) {
            Ok(removed) => self.watch.expect(removed),
            Err(e) => warn!("follow-routes: {e}"),
        }
        info!("follow-routes: {} routes now", routes.len());
        Ok(())
    }
}
