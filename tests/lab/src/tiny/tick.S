# The ticking guest: entered and made of plain integer instructions as tiny.S is.
#
# Command line: PAGES SPAN, hexadecimal. A tick begins SPAN * 2^16 time stamp counter ticks after the one before. It checks one
# of PAGES pages from 0x400000, in turn, rewrites it, and prints one character: the tick's number, modulo 64, from "0" on.
# Prints "!" where memory is wrong, and halts. A "q" on COM1 powers off.

        .set    COM1, 0x3f8
        .set    LSR, COM1 + 5
        .set    FIRST, 0x400000
        .set    GED, 0xfea00200         # sleep control
        .set    MIX, 0x61c88647

        .globl  _start
_start:
        mov     $0x80000, %esp
        mov     0x228(%rsi), %esi       # cmd_line_ptr
        call    hex
        mov     %rax, %r8               # pages
        call    hex
        shl     $16, %rax
        mov     %rax, %r9               # time stamp counter ticks
        xor     %r10d, %r10d            # passes done
        xor     %ebx, %ebx              # ticks done
        call    now
        mov     %rax, %r11              # when the tick began

pass:   mov     $FIRST, %edi
        mov     %r8, %rcx
tick:   test    %r10, %r10
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

        mov     %ebx, %eax
        and     $63, %al
        add     $'0', %al
        mov     $COM1, %dx
        out     %al, %dx
        inc     %ebx

        mov     $LSR, %dx
        in      %dx, %al
        test    $1, %al
        jz      wait
        mov     $COM1, %dx
        in      %dx, %al
        cmp     $'q', %al
        jne     wait
        mov     $GED, %eax
        movb    $0x34, (%rax)           # sleep type 5, sleep enable

wait:   call    now
        sub     %r11, %rax
        cmp     %r9, %rax
        jb      wait
        add     %rax, %r11
        dec     %rcx
        jnz     tick
        inc     %r10
        jmp     pass

wrong:  mov     $'!', %al
        mov     $COM1, %dx
        out     %al, %dx
halt:   cli
        hlt
        jmp     halt

# RAX: the hexadecimal number at RSI, which moves behind it and the byte that ends it; RDX is lost.
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
now:    rdtsc
        shl     $32, %rdx
        or      %rdx, %rax
        ret
