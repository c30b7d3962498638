# A server under load: sets and gets of 200 bytes under 50,000 keys, by 8 clients.
redis-server --save '' --port 0 --unixsocket /tmp/redis --daemonize yes >/dev/null
while ! redis-cli -s /tmp/redis ping >/dev/null 2>&1; do :; done
nestwalk-mark 3
redis-benchmark -s /tmp/redis -c 8 -n 15000 -r 50000 -d 200 -t set,get,lpush -q
nestwalk-mark 4
redis-cli -s /tmp/redis shutdown
