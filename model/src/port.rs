//! A VF's port at the switch, where the network has a port profile: what the agent asks for, and what the switch does.

use hybridnic_agent::nic::seen;

use crate::nic_task::set;
use crate::state::{Asked, Asking, Nic, Node, Port, Switch};

/// What the agent sees of a port.
pub(crate) fn seen(port: Port) -> seen::Port {
    match port {
        Port::NoProfile => seen::Port::NoProfile,
        Port::Has(Asked::Preassociate) => seen::Port::Preassociated,
        Port::Has(Asked::Associate) => seen::Port::Associated,
        Port::Has(Asked::Disassociate) => seen::Port::Free,
        Port::Asked(_) => seen::Port::Unsettled,
    }
}

/// Has the switch take away what the port of a VF has that is to be given back; whether it has nothing.
pub(crate) fn free(nic: &mut Nic, switch: Switch) -> bool {
    let nothing = Port::Has(Asked::Disassociate);
    let port = nic.vf.map_or(Port::NoProfile, |vf| vf.port);
    if port == Port::NoProfile || port == nothing {
        return true;
    }
    let silent = switch == Switch::Silent;
    let asked = if silent {
        Port::Asked(Asked::Disassociate)
    } else {
        nothing
    };
    set(nic, |vf| vf.port = asked);
    !silent
}

/// The switch is asked; whether it has done it. It is asked nothing twice.
pub(crate) fn ask(nic: &mut Nic, switch: Switch, asked: Asked) -> bool {
    let (port, asking) = match switch {
        Switch::Answers => (Port::Has(asked), Asking::No),
        Switch::Refuses if asked == Asked::Disassociate => (Port::Has(asked), Asking::No),
        Switch::Silent => (Port::Asked(asked), Asking::Waits),
        // What it was asked for is called off.
        Switch::Refuses => (Port::Has(Asked::Disassociate), Asking::Failed),
    };
    set(nic, |vf| vf.port = port);
    nic.asking = asking;
    asking == Asking::No
}

/// The switch does all that it was asked for, and is there again.
pub(crate) fn answers(node: &mut Node) {
    node.switch = Switch::Answers;
    for nic in &mut node.nics {
        set(nic, |vf| {
            if let Port::Asked(asked) = vf.port {
                vf.port = Port::Has(asked);
            }
        });
        nic.asking = Asking::No;
    }
}

/// The NIC's task has waited for the switch for long enough: it gives up what it asked for.
pub(crate) fn time_out(node: &mut Node) {
    for nic in &mut node.nics {
        if nic.asking == Asking::Waits {
            set(nic, |vf| vf.port = Port::Asked(Asked::Disassociate));
            nic.asking = Asking::Failed;
        }
    }
}
