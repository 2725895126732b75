# The tiny guest: entered in 64-bit mode as Linux is, RSI -> boot_params, memory mapped one to one below 4 GiB.
# Plain integer instructions only: a KVM that emulates CPL 0 instruction by instruction runs them, too.
#
# Command line: PAGES [SPAN], hexadecimal. PAGES pages from 0x400000 are rewritten in each pass, which is begun
# SPAN * 2^16 time stamp counter ticks after the one before (0: at once).
# Prints "tiny" once, "p" and the pass number after each pass, "E" and the address where memory is wrong (and halts).
# A byte on COM1 is a command, looked at after each pass: "q" powers off, "r" resets.

        .set    COM1, 0x3f8
        .set    LSR, COM1 + 5
        .set    FIRST, 0x400000
        .set    GED, 0xfea00200         # sleep control, sleep status, reset
        .set    MIX, 0x61c88647

        .globl  _start
_start:
        mov     $0x80000, %esp
        mov     0x228(%rsi), %esi       # cmd_line_ptr
        call    hex
        mov     %rax, %r8               # pages
        call    hex
        shl     $16, %rax
        mov     %rax, %r9               # ticks
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
        call    ticks
        mov     %rax, %r11              # when the pass began

pass:   mov     $FIRST, %edi
        mov     %r8, %rcx
page:   test    %r10, %r10
        jz      write
        imul    $MIX, %r10, %rax        # what the pass before wrote: pass number and address, mixed
        xor     %rdi, %rax
        cmp     %rax, (%rdi)
        jne     wrong
        cmp     %rax, 0xff8(%rdi)
        jne     wrong
write:  lea     1(%r10), %rax
        imul    $MIX, %rax, %rax
        xor     %rdi, %rax
        mov     %rax, (%rdi)
        mov     %rax, 0xff8(%rdi)
        add     $0x1000, %rdi
        dec     %rcx
        jnz     page
        inc     %r10

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
        jb      wait
        add     %rax, %r11
        jmp     pass

wrong:  mov     $'E', %al
        call    putc
        mov     %rdi, %rbx
        call    puthex
        call    newline
halt:   cli
        hlt
        jmp     halt

# RAX: the hexadecimal number at RSI, 0 if there is none; RSI moves behind it and the byte that ends it.
hex:    xor     %eax, %eax
1:      movzbl  (%rsi), %edx
        test    %edx, %edx
        jz      2f                      # stays at the end of the line
        inc     %rsi
        sub     $'0', %edx
        js      2f
        cmp     $10, %edx
        jb      3f
        sub     $'a' - '0' - 10, %edx
        cmp     $10, %edx
        jb      2f
        cmp     $16, %edx
        jae     2f
3:      shl     $4, %rax
        or      %rdx, %rax
        jmp     1b
2:      ret

# Time stamp counter in RAX; RDX is lost.
ticks:  rdtsc
        shl     $32, %rdx
        or      %rdx, %rax
        ret

# AL to the console; RDX is lost.
newline:
        mov     $'\n', %al
putc:   mov     $COM1, %dx
        out     %al, %dx
        ret

# RBX in 8 hexadecimal digits; RAX, RCX, RDX are lost.
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
