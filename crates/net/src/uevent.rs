//! PCI functions and network interfaces that come, go, or change their driver, as the kernel announces them to udev.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;
use rtnetlink::sys::protocols::NETLINK_KOBJECT_UEVENT;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};

use crate::types::PciAddress;

/// The group of the kernel's own messages; udev sends its to group 2.
const KERNEL_GROUP: u32 = 1;
/// Room for a message: the kernel keeps them below 4 KiB (`UEVENT_BUFFER_SIZE`, and the path).
const MESSAGE_CAPACITY: usize = 8 << 10;
/// Room for some thousand messages: 508 VFs that appear at once send about two each.
const RECEIVE_BUFFER: usize = 4 << 20;

/// An event of a PCI function or a network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uevent {
    /// What happened.
    pub action: Action,
    /// To what.
    pub subsystem: Subsystem,
    /// The device's path in sysfs, without the mount point.
    pub devpath: String,
    /// The function, or the one that the interface belongs to.
    pub address: Option<PciAddress>,
    /// The interface's name.
    pub interface: Option<String>,
    /// The driver that is bound, of a function.
    pub driver: Option<String>,
}

/// What happened to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It appeared.
    Add,
    /// It is gone.
    Remove,
    /// A driver took it.
    Bind,
    /// Its driver let it go.
    Unbind,
    /// Anything else: `change`, `move`, `online`, `offline`.
    Other,
}

/// What kind of device it happened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subsystem {
    /// A PCI function.
    Pci,
    /// A network interface.
    Net,
}

/// One item of [`Uevents`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceEvent {
    /// Something happened to a device.
    Device(Uevent),
    /// Events were lost. Discover again.
    Resync,
}

/// The kernel's events of PCI functions and network interfaces, from the moment it is opened. It ends if the socket
/// fails.
pub struct Uevents {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Uevents {
    /// Subscribes. Must be called within a tokio runtime. Interfaces are those of the calling thread's network
    /// namespace; events of PCI functions come only to namespaces of the initial user namespace.
    pub fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_KOBJECT_UEVENT)?;
        socket.socket_ref().set_rx_buf_sz(RECEIVE_BUFFER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, KERNEL_GROUP))?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(MESSAGE_CAPACITY),
        })
    }
}

impl Stream for Uevents {
    type Item = DeviceEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<DeviceEvent>> {
        let Self { socket, buffer } = self.get_mut();
        loop {
            buffer.clear();
            match ready!(socket.poll_recv_from(cx, buffer)) {
                // Only the kernel is port 0; a process of the same machine may also send to the group.
                Ok(sender) if sender.port_number() == 0 => {
                    if let Some(uevent) = parse(buffer) {
                        return Poll::Ready(Some(DeviceEvent::Device(uevent)));
                    }
                }
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Poll::Ready(Some(DeviceEvent::Resync));
                }
                Err(e) => {
                    tracing::error!(error = %e, "the socket for device events failed");
                    return Poll::Ready(None);
                }
            }
        }
    }
}

/// Reads a message: a line `add@/devices/...`, then `KEY=value` lines, all ended by NUL. `None` of other subsystems.
pub(crate) fn parse(message: &[u8]) -> Option<Uevent> {
    let lines = || {
        message
            .split(|byte| *byte == 0)
            .skip(1)
            .filter_map(|line| std::str::from_utf8(line).ok())
    };
    let value = |key: &str| lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let subsystem = match value("SUBSYSTEM")? {
        "pci" => Subsystem::Pci,
        "net" => Subsystem::Net,
        _ => return None,
    };
    let devpath = value("DEVPATH")?;
    // An interface's path has all bridges on the way; the last one is its own function.
    let of_path = || devpath.rsplit('/').find_map(|part| part.parse().ok());
    Some(Uevent {
        action: match value("ACTION")? {
            "add" => Action::Add,
            "remove" => Action::Remove,
            "bind" => Action::Bind,
            "unbind" => Action::Unbind,
            _ => Action::Other,
        },
        subsystem,
        address: value("PCI_SLOT_NAME")
            .and_then(|name| name.parse().ok())
            .or_else(of_path),
        interface: value("INTERFACE").map(str::to_owned),
        driver: value("DRIVER")
            .filter(|driver| !driver.is_empty())
            .map(str::to_owned),
        devpath: devpath.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_a_function_that_is_bound() {
        let message = b"bind@/devices/pci0000:00/0000:00:02.0/0000:01:10.0\0ACTION=bind\0\
            DEVPATH=/devices/pci0000:00/0000:00:02.0/0000:01:10.0\0SUBSYSTEM=pci\0DRIVER=vfio-pci\0\
            PCI_CLASS=20000\0PCI_ID=8086:10CA\0PCI_SLOT_NAME=0000:01:10.0\0SEQNUM=2345\0";
        let uevent = parse(message).unwrap();
        assert_eq!((uevent.action, uevent.subsystem), (Action::Bind, Subsystem::Pci));
        assert_eq!(uevent.address, Some("0000:01:10.0".parse().unwrap()));
        assert_eq!(uevent.driver.as_deref(), Some("vfio-pci"));
    }

    #[test]
    fn reads_an_interface_of_a_function() {
        let message = b"add@x\0ACTION=add\0DEVPATH=/devices/pci0000:00/0000:00:02.0/0000:01:10.2/net/eth3\0\
            SUBSYSTEM=net\0INTERFACE=eth3\0IFINDEX=7\0SEQNUM=2346\0";
        let uevent = parse(message).unwrap();
        assert_eq!((uevent.action, uevent.subsystem), (Action::Add, Subsystem::Net));
        assert_eq!(uevent.address, Some("0000:01:10.2".parse().unwrap()));
        assert_eq!(uevent.interface.as_deref(), Some("eth3"));
    }

    #[test]
    fn leaves_other_subsystems_out() {
        assert_eq!(
            parse(b"add@x\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=block\0"),
            None
        );
    }

    proptest! {
        #[test]
        fn no_message_makes_the_parser_panic(message: Vec<u8>) {
            let _ = parse(&message);
        }
    }
}
