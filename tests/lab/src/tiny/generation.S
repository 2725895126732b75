# The generation guest: entered in 64-bit mode as Linux is, memory mapped one to one below 4 GiB. It watches the
# machine's generation id.
# Plain integer instructions only, so that a KVM that emulates CPL 0 instruction by instruction runs them, too.
#
# Prints "i" and the id's four words in hexadecimal at the start, each time the id has changed, and for each byte on
# COM1; prints "e" and the event bits read from the generic event device, each time some are set.

        .set    COM1, 0x3f8
        .set    LSR, COM1 + 5
        .set    EVENTS, 0xfea00000
        .set    ID, 0x9f000

        .globl  _start
_start:
        mov     $0x80000, %esp
        mov     $ID, %esi
        mov     $EVENTS, %edi
print:  mov     (%rsi), %r8
        mov     8(%rsi), %r9
        mov     $'i', %al
        call    putc
        mov     %r8, %rbx
        call    words
        mov     %r9, %rbx
        call    words
        call    newline

watch:  cmp     (%rsi), %r8
        jne     print
        cmp     8(%rsi), %r9
        jne     print
        mov     (%rdi), %ebx            # reading takes the events
        test    %ebx, %ebx
        jz      1f
        mov     $'e', %al
        call    putc
        call    word
        call    newline
1:      mov     $LSR, %dx
        in      %dx, %al
        test    $1, %al
        jz      watch
        mov     $COM1, %dx
        in      %dx, %al
        jmp     print

newline:
        mov     $'\n', %al
putc:   mov     $COM1, %dx
        out     %al, %dx
        ret

# Prints RBX as two words, the low one first.
words:  call    word
        shr     $32, %rbx
# Prints a space, and EBX in eight digits; RAX, RCX, RDX are lost.
word:   mov     $' ', %al
        call    putc
        mov     $32, %ecx
1:      sub     $4, %ecx
        mov     %ebx, %eax
        shr     %cl, %eax
        and     $15, %eax
        add     $'0', %al
        cmp     $'9', %al
        jbe     2f
        add     $'a' - '9' - 1, %al
2:      call    putc
        test    %ecx, %ecx
        jnz     1b
        ret
