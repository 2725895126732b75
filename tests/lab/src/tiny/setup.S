# The tiny guest's setup code, for loaders that enter a kernel in real mode, as QEMU's does. It is entered like Linux's
# setup code, at offset 0x200, with CS 0x20 above the other segments. It switches to 64-bit mode, with memory mapped one
# to one below 4 GiB and RSI -> boot_params, and jumps to tiny.S. The other segment registers stay as they are: 64-bit
# code ignores them.

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
