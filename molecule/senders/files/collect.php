<?php
// Fetches and deletes all messages as Oempro does, with PHP's imap extension (c-client):
//   php collect.php '{192.0.2.1:993/imap/ssl/novalidate-cert}INBOX' USER PASSWORD DIRECTORY
[, $mailbox, $user, $password, $directory] = $argv;
$session = imap_open($mailbox, $user, $password, 0, 1);
if (!$session) {
    fwrite(STDERR, implode("\n", imap_errors()) . "\n");
    exit(1);
}
$count = imap_num_msg($session);
for ($number = 1; $number <= $count; $number++) {
    $message = imap_fetchheader($session, $number) . imap_body($session, $number, FT_PEEK);
    file_put_contents($directory . '/' . bin2hex(random_bytes(8)), $message);
    imap_delete($session, (string) $number);
}
imap_close($session, CL_EXPUNGE);
