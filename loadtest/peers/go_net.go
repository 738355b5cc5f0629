// A goroutine per client, by Go's net package.
package main

import (
	"net"
	"os"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		panic(err)
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			continue
		}
		go func() {
			defer client.Close()
			buffer := make([]byte, 64*1024)
			for {
				size, err := client.Read(buffer)
				if size > 0 {
					if _, err := client.Write(buffer[:size]); err != nil {
						return
					}
				}
				if err != nil { // its end, or its failure
					return
				}
			}
		}()
	}
}
