//! A device of DPDK's: found, configured, started, and taken away again.

use super::pool::Pool;
use super::{eal, log};
use std::ffi::{CStr, CString, c_void};
use std::mem::zeroed;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use zstack_dpdk_sys as sys;

/// What a device says of itself.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub driver: String,
    pub rx_queues: u16,
    pub tx_queues: u16,
    pub rx_offloads: u64,
    pub tx_offloads: u64,
    pub most_mtu: u16,
    pub rss: u64,
}

/// How a device is to be configured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub queues: u16,
    pub rx_offloads: u64,
    pub tx_offloads: u64,
    pub interrupts: bool,
    pub mtu: u16,
    pub rss: u64,
}

const NOTSUP: i32 = -libc::ENOTSUP;

/// A failed call: its name and why.
pub(crate) type Failed = (&'static str, String);

/// Devices that were pulled out.
static REMOVED: [AtomicBool; sys::RTE_MAX_ETHPORTS as usize] =
    [const { AtomicBool::new(false) }; sys::RTE_MAX_ETHPORTS as usize];

extern "C" fn removed(port: u16, _: sys::rte_eth_event_type, _: *mut c_void, _: *mut c_void) -> i32 {
    if let Some(flag) = REMOVED.get(usize::from(port)) {
        flag.store(true, Ordering::Relaxed);
    }
    0
}

/// A device that DPDK has. Dropping it stops it and takes it away.
#[derive(Debug)]
pub(crate) struct Ethdev {
    port: u16,
}

fn check(call: &'static str, result: i32) -> Result<(), Failed> {
    if result >= 0 {
        return Ok(());
    }
    let said = eal::first_complaint(&log::said()).map(|s| format!(" ({s})")).unwrap_or_default();
    Err((call, format!("{}{said}", eal::text_of(result))))
}

impl Ethdev {
    /// Has DPDK take the device.
    ///
    /// # Errors
    /// What DPDK said.
    pub fn probe(name: &str, devargs: &str) -> Result<Ethdev, String> {
        log::clear();
        let text = CString::new(devargs).map_err(|_| "a zero byte in the name".to_owned())?;
        // SAFETY: DPDK runs; the string lives through the call.
        let result = unsafe { sys::rte_dev_probe(text.as_ptr()) };
        let mut port = 0;
        let name = CString::new(name.trim_start_matches("pci:").trim_start_matches("vdev:")).expect("looked at above");
        // SAFETY: the name lives through the call, and `port` is of this frame.
        let found = result >= 0 && unsafe { sys::rte_eth_dev_get_port_by_name(name.as_ptr(), &raw mut port) } == 0;
        if !found {
            return Err(eal::first_complaint(&log::said()).unwrap_or_else(|| eal::text_of(result)));
        }
        REMOVED[usize::from(port)].store(false, Ordering::Relaxed);
        let event = sys::rte_eth_event_type_RTE_ETH_EVENT_INTR_RMV;
        // SAFETY: the callback lives as long as the program and touches a static alone.
        unsafe { sys::rte_eth_dev_callback_register(port, event, Some(removed), std::ptr::null_mut()) };
        Ok(Ethdev { port })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the device was pulled out.
    pub fn is_removed(&self) -> bool {
        REMOVED[usize::from(self.port)].load(Ordering::Relaxed)
    }

    fn info(&self) -> sys::rte_eth_dev_info {
        // SAFETY: all zeroes are a valid value: numbers and null pointers.
        let mut info: sys::rte_eth_dev_info = unsafe { zeroed() };
        // SAFETY: the port is ours, and `info` is of this frame.
        unsafe { sys::rte_eth_dev_info_get(self.port, &raw mut info) };
        info
    }

    pub fn about(&self) -> About {
        let info = self.info();
        let driver = if info.driver_name.is_null() {
            String::new()
        } else {
            // SAFETY: a string of the driver's, which is loaded for good.
            unsafe { CStr::from_ptr(info.driver_name) }.to_string_lossy().into_owned()
        };
        About {
            driver,
            rx_queues: info.max_rx_queues,
            tx_queues: info.max_tx_queues,
            rx_offloads: info.rx_offload_capa,
            tx_offloads: info.tx_offload_capa,
            most_mtu: info.max_mtu,
            rss: info.flow_type_rss_offloads,
        }
    }

    pub fn configure(&self, setup: &Setup) -> Result<(), Failed> {
        // SAFETY: all zeroes are the default configuration (rte_ethdev.h).
        let mut conf: sys::rte_eth_conf = unsafe { zeroed() };
        conf.rxmode.mtu = u32::from(setup.mtu);
        conf.rxmode.offloads = setup.rx_offloads;
        conf.txmode.offloads = setup.tx_offloads;
        if setup.queues > 1 && setup.rss != 0 {
            conf.rxmode.mq_mode = sys::rte_eth_rx_mq_mode_RTE_ETH_MQ_RX_RSS;
            conf.rx_adv_conf.rss_conf.rss_hf = setup.rss;
        }
        conf.intr_conf.set_rxq(u32::from(setup.interrupts));
        // SAFETY: the port is ours and not started; `conf` lives through the call and is copied.
        let result = unsafe { sys::rte_eth_dev_configure(self.port, setup.queues, setup.queues, &raw const conf) };
        check("rte_eth_dev_configure", result)
    }

    /// The numbers of descriptors that the device takes, near those.
    pub fn descriptors(&self, mut rx: u16, mut tx: u16) -> (u16, u16) {
        // SAFETY: the port is ours, and both numbers are of this frame.
        unsafe { sys::rte_eth_dev_adjust_nb_rx_tx_desc(self.port, &raw mut rx, &raw mut tx) };
        (rx, tx)
    }

    /// `pool` must live until the device is dropped.
    pub fn queue(&self, queue: u16, rx: u16, tx: u16, pool: &Pool) -> Result<(), Failed> {
        // SAFETY: the port is ours, configured and not started; no configuration of its own: the driver's default. The pool outlives the
        // device by this function's contract.
        let result = unsafe { sys::rte_eth_rx_queue_setup(self.port, queue, rx, 0, std::ptr::null(), pool.as_ptr()) };
        check("rte_eth_rx_queue_setup", result)?;
        // SAFETY: as above.
        let result = unsafe { sys::rte_eth_tx_queue_setup(self.port, queue, tx, 0, std::ptr::null()) };
        check("rte_eth_tx_queue_setup", result)
    }

    pub fn start(&self) -> Result<(), Failed> {
        // SAFETY: the port is ours and configured.
        check("rte_eth_dev_start", unsafe { sys::rte_eth_dev_start(self.port) })
    }

    /// No driver reads or writes memory of ours for this device any more.
    pub fn stop(&self) {
        // SAFETY: the port is ours; to stop a stopped one does nothing.
        unsafe { sys::rte_eth_dev_stop(self.port) };
    }

    pub fn set_mtu(&self, mtu: u16) -> Result<(), Failed> {
        // SAFETY: the port is ours.
        let result = unsafe { sys::rte_eth_dev_set_mtu(self.port, mtu) };
        let mut now = 0;
        // SAFETY: the port is ours, and `now` is of this frame.
        let asked = unsafe { sys::rte_eth_dev_get_mtu(self.port, &raw mut now) };
        // A driver that changes none later (igbvf) has taken it when it was configured.
        match result == NOTSUP && asked == 0 && now == mtu {
            true => Ok(()),
            false => check("rte_eth_dev_set_mtu", result),
        }
    }

    pub fn mac(&self) -> [u8; 6] {
        let mut mac = sys::rte_ether_addr { addr_bytes: [0; 6] };
        // SAFETY: the port is ours, and `mac` is of this frame.
        unsafe { sys::rte_eth_macaddr_get(self.port, &raw mut mac) };
        mac.addr_bytes
    }

    /// Has the device take packets to any station, or else those to a group at least.
    pub fn listen(&self, to_all: bool) {
        // SAFETY: the port is ours. Where the driver cannot, it either gets them anyway or not at all.
        unsafe {
            if to_all {
                sys::rte_eth_promiscuous_enable(self.port);
            }
            sys::rte_eth_allmulticast_enable(self.port);
        }
    }

    /// Whether the other end is there, as far as the driver knows.
    pub fn is_up(&self) -> bool {
        // SAFETY: all zeroes are a valid link: down.
        let mut link: sys::rte_eth_link = unsafe { zeroed() };
        // SAFETY: the port is ours, and `link` is of this frame.
        unsafe { sys::rte_eth_link_get_nowait(self.port, &raw mut link) };
        u32::from(link.link_status()) == sys::RTE_ETH_LINK_UP
    }

    pub fn stats(&self) -> sys::rte_eth_stats {
        // SAFETY: all zeroes are valid counters.
        let mut stats: sys::rte_eth_stats = unsafe { zeroed() };
        // SAFETY: the port is ours, and `stats` is of this frame.
        unsafe { sys::rte_eth_stats_get(self.port, &raw mut stats) };
        stats
    }

    /// The descriptor that a packet's arrival at the queue makes readable, once that is [armed](Ethdev::arm).
    pub fn interrupt(&self, queue: u16) -> Option<RawFd> {
        // SAFETY: the port is ours and started.
        let fd = unsafe { sys::rte_eth_dev_rx_intr_ctl_q_get_fd(self.port, queue) };
        (fd >= 0).then_some(fd)
    }

    /// Whether arrivals are told by the descriptor from now on. Where it is the device's own (net_tap), they always are, and the driver
    /// knows of nothing to be enabled.
    pub fn arm(&self, queue: u16) -> bool {
        // SAFETY: the port is ours and started.
        matches!(unsafe { sys::rte_eth_dev_rx_intr_enable(self.port, queue) }, 0 | NOTSUP)
    }

    pub fn disarm(&self, queue: u16) {
        // SAFETY: the port is ours and started.
        unsafe { sys::rte_eth_dev_rx_intr_disable(self.port, queue) };
    }
}

impl Drop for Ethdev {
    fn drop(&mut self) {
        let device = self.info().device;
        self.stop();
        eal::settle();
        // SAFETY: the port is ours and stopped; nobody uses it any more, since this was the only handle.
        unsafe { sys::rte_eth_dev_close(self.port) };
        if !device.is_null() {
            // SAFETY: the device is that of the port, and DPDK has it until this call.
            unsafe { sys::rte_dev_remove(device) };
        }
    }
}
