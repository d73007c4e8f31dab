//! The lab's program inside nodes and guests: runs commands, relays streams, speaks QMP with descriptors, keeps
//! others' descriptors, echoes traffic. It has no runtime and starts in milliseconds, because it runs under software emulation.

mod echo;
mod flood;
mod keep;
mod netview;
mod qmp;
mod serve;
mod vsock;

use std::process::ExitCode;

const USAGE: &str = "usage:
  lab-exec serve (--tcp ADDRESS:PORT | --vsock PORT) [--announce FILE]   run commands for the harness
  lab-exec echo ADDRESS:PORT                                             answer the traffic meter
  lab-exec join GROUP ADDRESS                                            be in a multicast group, by the address's interface
  lab-exec flood DEVICE FROM TO COUNT                                    frames into a macvtap, and the nanoseconds of each
  lab-exec keep PID PATH                                                 keep what a process has open, by the start of its path
  lab-exec netview                                                       every netdev, as JSON
  lab-exec qmp SOCKET [NAME=PATH]... [--] COMMAND...                     send QMP; descriptors by getfd";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["serve", rest @ ..] => serve::main(rest),
        ["echo", address] => echo::main(address),
        ["join", group, address] => echo::join(group, address),
        ["flood", device, from, to, count] => flood::main(device, from, to, count),
        ["keep", pid, path] => keep::main(pid, path),
        ["netview"] => netview::main(),
        ["qmp", socket, rest @ ..] => qmp::main(socket, rest),
        _ => Err(std::io::Error::other(USAGE)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("lab-exec: {e}");
            ExitCode::FAILURE
        }
    }
}
