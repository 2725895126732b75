# The tiny guest's setup code: entered in real mode as Linux's is, at 0x200 behind CS - 0x20, for loaders that begin there
# as QEMU's does. Goes to 64-bit mode, memory mapped one to one below 4 GiB, RSI -> boot_params, and on to tiny.S.
# The other segments stay as they are: 64-bit code does not look at them.

        .set    HERE, 0x280             # offset of this code behind boot_params
        .set    GDTR, 0x8ff0            # free low memory
        .set    PML4, 0x9000
        .set    PDPT, 0xa000
        .set    EFER, 0xc0000080
        .set    ENTRY, 0x100200

        .code16
        .globl  _start
_start: cli
        cld
        mov     %cs, %ax
        sub     $0x20, %ax
        movzwl  %ax, %esi
        shl     $4, %esi                # the setup header's own copy of boot_params

        xor     %eax, %eax
        mov     %ax, %es
        mov     $PML4, %di
        mov     $0x800, %cx
        rep     stosl                   # both tables
        movw    $PDPT + 3, %es:PML4
        mov     $0x83, %al              # present, writable, 1 GiB
        mov     $PDPT, %di
1:      mov     %eax, %es:(%di)
        add     $8, %di
        add     $1 << 30, %eax
        jnc     1b

        movw    $15, %es:GDTR
        lea     HERE + gdt - _start(%esi), %eax
        mov     %eax, %es:GDTR + 2
        lgdtl   %es:GDTR

        mov     %cr4, %eax
        or      $0x20, %al              # PAE
        mov     %eax, %cr4
        mov     $PML4, %eax
        mov     %eax, %cr3
        mov     $EFER, %ecx
        rdmsr
        or      $0x100, %ax             # LME
        wrmsr
        mov     %cr0, %eax
        or      $0x80000001, %eax       # PG, PE
        mov     %eax, %cr0
        ljmpl   $8, $ENTRY

        .balign 8
gdt:    .quad   0
        .quad   0x00af9b000000ffff      # 64-bit code
