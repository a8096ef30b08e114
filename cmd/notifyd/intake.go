package main

import (
	"crypto/tls"
	"errors"
	"sync/atomic"
)

// intakeConfig says where submissions come in.
type intakeConfig struct {
	Listen string    `yaml:"listen"`
	TLS    serverTLS `yaml:"tls"`
}

// serverTLS is how the intake proves itself. Without a certificate it speaks plain text.
type serverTLS struct {
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// ClientCAFile holds the roots of callers' certificates; empty: callers' certificates are not looked at.
	ClientCAFile string `yaml:"client_ca_file"`
}

func (c serverTLS) on() bool { return c.CertFile != "" }

func (c serverTLS) validate() error {
	switch {
	case (c.CertFile == "") != (c.KeyFile == ""):
		return errors.New("intake.tls.cert_file: goes with intake.tls.key_file: give both or none")
	case c.ClientCAFile != "" && c.CertFile == "":
		return errors.New("intake.tls.client_ca_file: needs intake.tls.cert_file: without TLS there are no certificates")
	}
	return nil
}

// identity is what the intake proves itself with, replaced whole by a reload.
type identity struct{ current atomic.Pointer[tls.Config] }

// read reads the files, as a start or a reload takes them over.
func (c serverTLS) read() (*tls.Config, error) {
	pair, err := readPair("intake.tls", c.CertFile, c.KeyFile)
	if err != nil {
		return nil, err
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"}}
	if c.ClientCAFile != "" {
		if out.ClientCAs, err = readRoots("intake.tls.client_ca_file", c.ClientCAFile); err != nil {
			return nil, err
		}
		out.ClientAuth = tls.VerifyClientCertIfGiven // other callers have keys
	}
	return out, nil
}

// config is one that each new connection takes the newest identity from.
func (i *identity) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return i.current.Load(), nil },
	}
}
