# The tiny guest: entered in 64-bit mode as Linux is, RSI -> boot_params, memory mapped one to one below 4 GiB.
# Plain integer instructions only, so that a KVM that emulates CPL 0 instruction by instruction runs them, too.
#
# Command line: PAGES [SPAN [DISK [SLEEP]]], hexadecimal. Each pass rewrites PAGES pages from 0x400000 and begins SPAN *
# 2^16 time stamp counter ticks after the previous one (0: at once); until then the processor is halted for SLEEP cycles
# of the local APIC's bus at a time, which are nanoseconds in KVM, or reads the counter again and again (0). DISK is the
# address of a virtio-mmio block device; its first sector is checked and rewritten at the end of each pass.
# Prints "tiny" once, "p" and the pass number after each pass, and "E" and an address, then halts, where memory or the
# disk's sector is wrong; for the sector it is the address of the buffer.
# A byte on COM1 is a command, read after each pass: "q" powers off, "r" resets.

        .include "parts.S"

        .set    QUEUE, 0x300000         # of the disk: 8 descriptors, the available ring, the used ring
        .set    AVAILABLE, 0x80
        .set    USED, 0x100
        .set    HEADER, 0x200           # of the request: type, sector; and its status
        .set    STATUS, 0x210
        .set    SECTOR, 0x400

        .set    ENTRY, 0x100200         # where the code is loaded
        .set    STACK, 0x80000
        .set    IDT, 0x81000
        .set    IDTR, 0x82000
        .set    VECTOR, 0x20            # of the timer's interrupt
        .set    APIC, 0xfee00000        # its registers: Intel SDM, volume 3, table "Local APIC Register Address Map"

        .globl  _start
_start:
        mov     $STACK, %esp
        mov     0x228(%rsi), %esi       # cmd_line_ptr
        call    hex
        mov     %rax, %r8               # pages
        call    hex
        shl     $16, %rax
        mov     %rax, %r9               # ticks
        call    hex
        mov     %rax, %r12              # disk
        call    hex
        mov     %rax, %rbp              # bus cycles
        xor     %r10d, %r10d            # passes done
        mov     $'t', %al
        call    putc
        mov     $'i', %al
        call    putc
        mov     $'n', %al
        call    putc
        mov     $'y', %al
        call    putc
        call    newline
        test    %r12, %r12
        jz      1f
        call    disk
1:      test    %rbp, %rbp
        jz      1f
        call    timer
1:      call    ticks
        mov     %rax, %r11              # when the pass began

pass:   mov     $FIRST, %edi
        mov     %r8, %rcx
page:   rewrite_page
        dec     %rcx
        jnz     page
        inc     %r10

        test    %r12, %r12
        jz      done
        mov     $QUEUE + SECTOR, %edi
        xor     %eax, %eax              # read
        call    request
        imul    $MIX, %r10, %rax        # what this pass writes; the pass before wrote MIX less
        lea     -MIX(%rax), %rcx
        cmp     $1, %r10
        je      1f                      # nothing was written before the first
        cmp     %rcx, (%rdi)
        jne     wrong
        cmp     %rcx, 0x1f8(%rdi)
        jne     wrong
1:      mov     %rax, (%rdi)
        mov     %rax, 0x1f8(%rdi)
        mov     $1, %eax                # write
        call    request
done:

        mov     $'p', %al
        call    putc
        mov     %r10, %rbx
        call    puthex
        call    newline

        mov     $LSR, %dx
        in      %dx, %al
        test    $1, %al
        jz      wait
        mov     $COM1, %dx
        in      %dx, %al
        mov     $GED, %ebx
        cmp     $'q', %al
        jne     1f
        movb    $0x34, (%rbx)           # sleep type 5, sleep enable
1:      cmp     $'r', %al
        jne     wait
        movb    $0x42, 2(%rbx)

wait:   call    ticks
        sub     %r11, %rax
        cmp     %r9, %rax
        jb      sleep
        add     %rax, %r11
        jmp     pass

# Halts until the timer's interrupt, unless SLEEP is 0. The interrupt's frame is dropped, because a KVM that emulates
# instructions has no `iret` in 64-bit mode.
sleep:  test    %rbp, %rbp
        jz      wait
        mov     $APIC, %ebx
        mov     %ebp, 0x380(%rbx)       # initial count: starts the timer
        sti
        hlt
woken:  mov     $STACK, %esp
        mov     $APIC, %ebx
        movl    $0, 0xb0(%rbx)          # end of interrupt
        jmp     wait

wrong:  mov     $'E', %al
        call    putc
        mov     %rdi, %rbx
        call    puthex
        call    newline
halt:   cli
        hlt
        jmp     halt

# Initializes the local APIC's timer, and the IDT with its interrupt's gate; RAX, RBX, RDX are lost.
timer:  mov     $IDT, %ebx
        mov     $woken - _start + ENTRY, %eax
        mov     %ax, VECTOR * 16(%rbx)
        mov     %cs, %dx
        mov     %dx, VECTOR * 16 + 2(%rbx)
        movw    $0x8e00, VECTOR * 16 + 4(%rbx) # present, interrupt gate
        shr     $16, %eax
        mov     %ax, VECTOR * 16 + 6(%rbx)
        movl    $0, VECTOR * 16 + 8(%rbx)
        movw    $VECTOR * 16 + 15, IDTR
        mov     %rbx, IDTR + 2
        lidt    IDTR
        mov     $0xff, %al              # the interrupt controllers of a PC deliver nothing
        out     %al, $0x21
        out     %al, $0xa1
        mov     $APIC, %ebx
        movl    $0x1ff, 0xf0(%rbx)      # enabled
        movl    $0xb, 0x3e0(%rbx)       # divided by 1
        movl    $VECTOR, 0x320(%rbx)    # one-shot
        ret

# Initializes the disk at R12, with one queue (virtio 1.2, 3.1.1 and 4.2); RAX, RBX are lost.
disk:   mov     $QUEUE, %ebx
        xor     %r13d, %r13d            # requests made
        movl    $0, 0x70(%r12)          # reset
        movl    $1, AVAILABLE(%rbx)     # no interrupts; index 0
        movl    $0, USED(%rbx)          # what a guest before a reset may have left
        lea     HEADER(%rbx), %eax
        mov     %rax, (%rbx)
        movl    $16, 8(%rbx)
        movl    $0x10001, 12(%rbx)      # next: 1
        lea     SECTOR(%rbx), %eax
        mov     %rax, 16(%rbx)
        movl    $512, 24(%rbx)
        lea     STATUS(%rbx), %eax
        mov     %rax, 32(%rbx)
        movl    $1, 40(%rbx)
        movl    $2, 44(%rbx)            # the device writes; the last
        movq    $0, HEADER + 8(%rbx)    # sector 0
        movl    $3, 0x70(%r12)          # acknowledge, driver
        movl    $1, 0x24(%r12)
        movl    $1, 0x20(%r12)          # feature 32: version 1
        movl    $11, 0x70(%r12)         # features are agreed on
        movl    $0, 0x30(%r12)
        movl    $8, 0x38(%r12)
        mov     %ebx, 0x80(%r12)
        lea     AVAILABLE(%rbx), %eax
        mov     %eax, 0x90(%r12)
        lea     USED(%rbx), %eax
        mov     %eax, 0xa0(%r12)
        movl    $1, 0x44(%r12)
        movl    $15, 0x70(%r12)
        ret

# Sends a request of type EAX (0 reads, 1 writes) for SECTOR, and waits for it; jumps to wrong if it fails. RAX is kept,
# RBX, RCX are lost.
request:
        mov     $QUEUE, %ebx
        mov     %eax, HEADER(%rbx)
        mov     %eax, %ecx
        xor     $1, %ecx
        shl     $1, %ecx                # the device writes what it reads from the disk
        or      $0x20001, %ecx          # next: 2
        mov     %ecx, 28(%rbx)
        movb    $0xff, STATUS(%rbx)
        mov     %r13d, %ecx
        and     $7, %ecx
        movw    $0, AVAILABLE + 4(%rbx, %rcx, 2)
        inc     %r13d
        mov     %r13w, AVAILABLE + 2(%rbx)
        movl    $0, 0x50(%r12)
1:      cmp     %r13w, USED + 2(%rbx)
        jne     1b
        cmpb    $0, STATUS(%rbx)
        jne     wrong
        ret

        routines

# Prints AL on the console; RDX is lost.
newline:
        mov     $'\n', %al
putc:   mov     $COM1, %dx
        out     %al, %dx
        ret

# Prints RBX in 8 hexadecimal digits; RAX, RCX, RDX are lost.
puthex: mov     $32, %ecx
1:      sub     $4, %ecx
        mov     %rbx, %rax
        shr     %cl, %rax
        and     $15, %eax
        add     $'0', %al
        cmp     $'9', %al
        jbe     2f
        add     $'a' - '0' - 10, %al
2:      call    putc
        test    %ecx, %ecx
        jnz     1b
        ret
