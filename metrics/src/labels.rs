//! The closed label sets of the metric families.
//!
//! Owns: the [`Label`] trait and one fieldless enum for every label whose values are known when the program
//! is built. Because the set is closed, a family over it is an array: counting is one index and one atomic
//! add, every value is exposed from the start (as 0), and a guest cannot invent a series.
//! Never: holds a number, or a value that came from outside the program.

/// A closed set of label values that indexes a [`PerLabel`](crate::PerLabel).
///
/// Implemented by the enums of this module; [`GuestErrorKind`] is the example to follow for a new set.
pub trait Label: Copy + Send + Sync + 'static {
    /// One cell for each value: `[T; Self::ALL.len()]`, which generic code cannot spell itself.
    type Cells<T: Send + Sync>: AsRef<[T]> + Send + Sync;

    /// Every value, in the order of [`Label::index`].
    const ALL: &'static [Self];

    /// Makes the cells; `make` is called once for each value, in order.
    fn cells<T: Send + Sync>(make: impl FnMut(usize) -> T) -> Self::Cells<T>;

    /// Position of this value in [`Label::ALL`], `0..ALL.len()`.
    fn index(self) -> usize;

    /// The value as Prometheus sees it: `snake_case` ASCII.
    fn as_str(self) -> &'static str;
}

macro_rules! label_set {
    ($(#[$meta:meta])* $name:ident { $($(#[$value_meta:meta])* $value:ident => $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$value_meta])* $value,)+ }

        impl $name {
            /// Every value of the set, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$value,)+];

            /// The label value as Prometheus sees it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$value => $text,)+ }
            }
        }

        impl Label for $name {
            type Cells<T: Send + Sync> = [T; Self::ALL.len()];
            const ALL: &'static [Self] = Self::ALL;

            fn cells<T: Send + Sync>(make: impl FnMut(usize) -> T) -> Self::Cells<T> {
                std::array::from_fn(make)
            }

            fn index(self) -> usize {
                self as usize
            }

            fn as_str(self) -> &'static str {
                Self::as_str(self)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

label_set! {
    /// Why `KVM_RUN` returned: label `kind` of `ringlet_vcpu_exits_total`
    /// (Linux `Documentation/virt/kvm/api.rst`, section 5, `exit_reason`).
    #[non_exhaustive]
    ExitKind {
        /// `KVM_EXIT_IO`, direction in.
        PioRead => "pio_read",
        /// `KVM_EXIT_IO`, direction out.
        PioWrite => "pio_write",
        /// `KVM_EXIT_MMIO`, `is_write` = 0.
        MmioRead => "mmio_read",
        /// `KVM_EXIT_MMIO`, `is_write` = 1.
        MmioWrite => "mmio_write",
        /// `KVM_EXIT_IOAPIC_EOI`: the split irqchip reports the end of a level interrupt.
        IoapicEoi => "ioapic_eoi",
        /// `KVM_EXIT_INTR` or `EINTR`: the vCPU was kicked.
        Interrupted => "interrupted",
        /// `KVM_EXIT_HYPERCALL`.
        Hypercall => "hypercall",
        /// `KVM_EXIT_SHUTDOWN`: a triple fault.
        Shutdown => "shutdown",
        /// `KVM_EXIT_INTERNAL_ERROR`: KVM could not go on (emulation, delivery).
        InternalError => "internal_error",
        /// `KVM_EXIT_FAIL_ENTRY`: the hardware refused the vCPU state.
        FailEntry => "fail_entry",
        /// `KVM_EXIT_SYSTEM_EVENT`.
        SystemEvent => "system_event",
        /// Every reason that is not listed.
        Other => "other",
    }
}

label_set! {
    /// What a guest did wrong: label `kind` of `ringlet_guest_errors_total`.
    #[non_exhaustive]
    GuestErrorKind {
        /// A port that no device claims.
        UnknownPort => "unknown_port",
        /// A guest-physical address that is neither RAM nor a device.
        UnknownMmio => "unknown_mmio",
        /// An access width that the register does not have.
        BadWidth => "bad_width",
        /// An offset inside a device at which there is no register.
        BadRegister => "bad_register",
        /// A value that the register does not accept.
        BadValue => "bad_value",
        /// A write to a register that can only be read.
        ReadOnly => "read_only",
        /// A read of a register that can only be written.
        WriteOnly => "write_only",
        /// A redirection entry with delivery mode SMI, NMI, INIT, ExtINT or a reserved one.
        IoapicDeliveryMode => "ioapic_delivery_mode",
        /// Interrupt routes rewritten faster than the meter allows.
        IoapicRate => "ioapic_rate",
        /// Serial bytes lost because one side did not read in time.
        SerialOverrun => "serial_overrun",
        /// Virtio: feature bits that were not offered, or not accepted as they must be.
        BadFeatures => "bad_features",
        /// Virtio: device status bits in an order that the specification forbids (virtio 1.2, section 3.1).
        BadStatus => "bad_status",
        /// Virtio: a queue enabled with a size or addresses that cannot be served, or changed while live.
        BadQueueConfig => "bad_queue_config",
        /// Virtio: an available ring with an impossible index or head; the queue is broken.
        BadRing => "bad_ring",
        /// Virtio: a malformed descriptor chain; the queue is broken.
        BadChain => "bad_chain",
        /// Virtio: a well-formed chain that holds a request which the device cannot make sense of.
        BadRequest => "bad_request",
        /// Virtio: a notification of a queue that does not exist or is not ready.
        StrayNotify => "stray_notify",
        /// Virtio: registers that cost the host work, written faster than the meter allows.
        SlowWriteRate => "slow_write_rate",
    }
}

label_set! {
    /// Lifecycle state of a live VM: label `state` of `ringlet_vms`.
    VmState {
        /// Assembled, not started.
        Created => "created",
        /// Its vCPUs may run.
        Running => "running",
        /// Its vCPUs are held.
        Paused => "paused",
        /// Ending: outcome decided, resources not yet given back.
        Stopping => "stopping",
    }
}

label_set! {
    /// How a VM ended: label `outcome` of `ringlet_vms_ended_total`.
    OutcomeKind {
        /// The guest wrote its exit code.
        Exited => "exited",
        /// The guest asked for a reset.
        Reset => "reset",
        /// The host stopped it.
        Stopped => "stopped",
        /// It ran out of its time.
        TimedOut => "timed_out",
        /// The guest broke (triple fault, internal error, failed entry).
        Crashed => "crashed",
        /// Ringlet or the host failed.
        Failed => "failed",
    }
}

label_set! {
    /// A stretch of a VM's start: label `phase` of `ringlet_boot_phase_seconds`.
    BootPhase {
        /// Image, command line and tables copied into guest RAM.
        Load => "load",
        /// KVM objects made, up to "could run".
        Create => "create",
        /// From start to the first exit of the boot vCPU.
        FirstExit => "first_exit",
        /// From start to the guest's ready signal.
        Ready => "ready",
    }
}

label_set! {
    /// What sort of virtio device it is: label `kind` of `ringlet_device_info`.
    #[non_exhaustive]
    DeviceKind {
        /// A disk (virtio 1.2, section 5.2).
        Block => "block",
        /// A source of random numbers (section 5.4).
        Entropy => "entropy",
        /// A console (section 5.3).
        Console => "console",
        /// A network interface (section 5.1).
        Net => "net",
        /// A socket device (section 5.10).
        Vsock => "vsock",
    }
}

label_set! {
    /// What a driver asks a device for: label `kind` of `ringlet_device_requests_total`.
    #[non_exhaustive]
    RequestKind {
        /// Read from a disk.
        Read => "read",
        /// Write to a disk.
        Write => "write",
        /// Make earlier writes durable.
        Flush => "flush",
        /// Give blocks back.
        Discard => "discard",
        /// Make blocks read as zeroes.
        WriteZeroes => "write_zeroes",
        /// Ask for a disk's serial number.
        GetId => "get_id",
        /// Random bytes.
        Entropy => "entropy",
        /// Input to the guest: bytes of a console, a packet of a network interface or of a socket's data.
        Receive => "receive",
        /// Output of the guest, likewise.
        Transmit => "transmit",
        /// Set up a network interface; a packet of a socket, either way, that has no data.
        Control => "control",
        /// What the device does not know.
        Other => "other",
    }
}

label_set! {
    /// How a request was answered: label `status` of `ringlet_device_requests_total`.
    RequestStatus {
        /// Done.
        Ok => "ok",
        /// It failed, or it was malformed.
        IoError => "io_error",
        /// The device does not do that.
        Unsupported => "unsupported",
    }
}

label_set! {
    /// Why a packet got no further: label `reason` of `ringlet_device_dropped_packets_total`.
    #[non_exhaustive]
    DropReason {
        /// To the guest: it has not offered enough room for it.
        TooLong => "too_long",
        /// It is no Ethernet frame: too short, or too long for any.
        BadLength => "bad_length",
        /// From the guest: its virtio header asks for what was not negotiated, or makes no sense.
        BadHeader => "bad_header",
        /// From the guest: it has an address that is not the guest's own.
        Spoofed => "spoofed",
        /// The link is down.
        LinkDown => "link_down",
        /// From the guest: the host does not take it.
        Refused => "refused",
    }
}

label_set! {
    /// What became of a connection that somebody asked a socket device for: label `result` of
    /// `ringlet_device_connections_total`.
    #[non_exhaustive]
    ConnectionResult {
        /// It was made.
        Established => "established",
        /// The other side does not want it, or nobody is there.
        Refused => "refused",
        /// The guest did not answer.
        TimedOut => "timed_out",
        /// The VM has no room for another one.
        Full => "full",
        /// The connections of all VMs of the process have as many descriptors as they may have.
        NoDescriptors => "no_descriptors",
        /// The device was reset meanwhile, or the host lacks descriptors.
        Failed => "failed",
    }
}

label_set! {
    /// Why a connection of a socket device was broken off, or a packet without one was answered by a reset: label `reason` of
    /// `ringlet_device_connection_resets_total`.
    #[non_exhaustive]
    ResetReason {
        /// The guest has broken it off.
        Guest => "guest",
        /// A packet of the guest made no sense, or more came than there was room for.
        Protocol => "protocol",
        /// A packet of the guest belonged to no connection.
        Unknown => "unknown",
        /// The driver has reset the device.
        Device => "device",
    }
}

#[cfg(test)]
#[path = "labels_test.rs"]
mod tests;
