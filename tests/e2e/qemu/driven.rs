//! Drives minivmm's devices to distinct states: through their registers, as a guest does, and for state that a
//! hypervisor holds, by distinct values.

use minivmm::bus::BusDevice;
use minivmm::kvm::state::pit::Channel;
use minivmm::kvm::state::registers::{FpReg, MtrrVar, XmmReg, YmmhReg};
use minivmm::kvm::state::{Apic, Cpu, IoApic, Pic, Pit};
use vmstate_tests::microvm::Microvm;

/// Input that waits in the serial port: fifteen bytes that the guest ignores, and the one that makes it power off. It
/// fills the port's FIFO.
pub(super) const INPUT: &[u8; 16] = b"...............q";

/// Drives every device.
pub(super) fn drive(machine: &Microvm) {
    let mut serial = machine.serial.lock().unwrap();
    for (register, value) in [(2, 0x81), (3, 0x03), (4, 0x0b), (7, 0x5a)] {
        serial.write(register, &[value]);
    }
    assert_eq!(serial.enqueue(INPUT), INPUT.len());
    machine.ged.lock().unwrap().press_power_button();
    // Features of the disk: SEG_MAX, FLUSH; of the card: MAC, STATUS, CTRL_VQ. The rings are in memory that is zero.
    begin_driving(&mut *machine.disk.lock().unwrap(), 1 << 2 | 1 << 9, &[0x80_0000]);
    begin_driving(&mut *machine.net.lock().unwrap(), 1 << 5 | 1 << 16 | 1 << 17, &[0x81_0000, 0x82_0000, 0x83_0000]);

    let mut state = machine.state.lock().unwrap();
    state.timer.cpu_clock_offset += 1_000_000_000;
    state.timer.cpu_ticks_offset += 2_000_000_000;
    let hypervisor = &mut state.hypervisor;
    drive_cpu(&mut hypervisor.vcpus[0].cpu);
    drive_apic(&mut hypervisor.vcpus[0].apic);
    drive_ioapic(&mut hypervisor.ioapic);
    hypervisor.pics = [0, 1].map(drive_pic);
    drive_pit(&mut hypervisor.pit);
}

/// A driver's initialization up to DRIVER_OK (virtio 1.2 §3.1.1), with a queue of 16 entries at each of these
/// addresses.
fn begin_driving(device: &mut impl BusDevice, features: u32, queues: &[u32]) {
    let mut write = |register: u64, value: u32| device.write(register, &value.to_le_bytes());
    for (register, value) in [(0x70, 1), (0x70, 3), (0x24, 0), (0x20, features), (0x24, 1), (0x20, 1), (0x70, 11)] {
        write(register, value);
    }
    for (queue, place) in (0..).zip(queues) {
        let ring =
            [(0x30, queue), (0x38, 16), (0x80, *place), (0x90, place + 0x1000), (0xa0, place + 0x2000), (0x44, 1)];
        ring.into_iter().for_each(|(register, value)| write(register, value));
    }
    write(0x70, 15);
}

/// Sets registers that the guest does not use; the guest goes on with the others.
fn drive_cpu(cpu: &mut Cpu) {
    let each = |n: usize, salt: u64| ((n as u64 + 1) * 0x0101_0101_0101_0101) ^ (salt << 32);
    cpu.regs[14..].copy_from_slice(&[each(14, 0), each(15, 0)]);
    cpu.fpuc = 0x027f;
    cpu.fptag = 0xff;
    cpu.fpregs = std::array::from_fn(|n| FpReg::new(1 << 63 | n as u64, 0x3fff + n as u16));
    (cpu.sysenter_cs, cpu.sysenter_esp, cpu.sysenter_eip) = (0x10, each(1, 1), each(2, 1));
    (cpu.cr2, cpu.mxcsr) = (0xdead_b000, 0x1fa0);
    cpu.dr[..4].copy_from_slice(&[0x1000, 0x2000, 0x3000, 0x4000]);
    cpu.xmm = std::array::from_fn(|n| XmmReg { low: each(n, 2), high: each(n, 3) });
    cpu.ymmh = std::array::from_fn(|n| YmmhReg { low: each(n, 4), high: each(n, 5) });
    (cpu.xcr0, cpu.xstate_bv) = (7, 7);
    (cpu.star, cpu.lstar, cpu.cstar, cpu.fmask) = (0x0023_0010_0000_0000, each(3, 1), each(4, 1), 0x4_7700);
    (cpu.kernel_gs_base, cpu.pat, cpu.tsc_aux) = (each(5, 1), 0x0007_0106_0007_0406, 7);
    cpu.mtrr_fixed = std::array::from_fn(|n| each(n, 6));
    cpu.mtrr_var = std::array::from_fn(|n| MtrrVar { base: (n as u64) << 20 | 6, mask: 0xff_fff0_0800 });
    cpu.mtrr_deftype = 0xc06;
    cpu.mce_banks = std::array::from_fn(|n| each(n, 7));
    (cpu.system_time_msr, cpu.wall_clock_msr) = (0x5001, 0x6000);
    (cpu.fpop, cpu.fpip, cpu.fpdp) = (0x5d8, 0x10_0300, 0x40_0000);
    (cpu.tsc_adjust, cpu.steal_time_msr) = (0x1234, 0x7001);
    (cpu.misc_enable, cpu.xss, cpu.spec_ctrl) = (0x801, 0x100, 5);
}

/// Timer masked, a logical id, one vector in service and one requested.
fn drive_apic(apic: &mut Apic) {
    (apic.tpr, apic.spurious_vec, apic.log_dest, apic.dest_mode) = (0x20, 0x1ff, 4, 0xf);
    (apic.isr[1], apic.irr[2], apic.tmr[2]) = (1 << 5, 1 << 6, 1 << 6);
    apic.lvt = [0x1_00ec, 0x1_0000, 0x1_0000, 0x1_0700, 0x0_0400, 0xfe];
    (apic.esr, apic.icr) = (0x40, [0x0000_4602, 0x0100_0000]);
    // Divide by 16, for which QEMU and the SDM have the value 3.
    (apic.divide_conf, apic.count_shift, apic.initial_count) = (3, 4, 0x10_0000);
}

fn drive_ioapic(ioapic: &mut IoApic) {
    (ioapic.id, ioapic.ioregsel, ioapic.irr) = (0, 0x12, 0);
    // Masked entries with distinct vectors.
    ioapic.ioredtbl = std::array::from_fn(|n| 0x1_0030 + n as u64);
}

fn drive_pic(chip: u8) -> Pic {
    Pic { imr: 0xfb - chip, irq_base: 0x20 + 8 * chip, auto_eoi: 1, init4: 1, elcr: 0x20, ..Pic::default() }
}

fn drive_pit(pit: &mut Pit) {
    let speaker = Channel { count: 1193, mode: 3, rw_mode: 3, gate: 1, latched_count: 77, ..pit.channels[2] };
    pit.channels[2] = speaker;
}
